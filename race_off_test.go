//go:build !race

package kith_test

// manyNodes is how many nodes a test has that wants many.
const manyNodes = 50
