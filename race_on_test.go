//go:build race

package kith_test

// manyNodes is how many nodes a test has that wants many: fewer where each is ten times slower.
const manyNodes = 12
