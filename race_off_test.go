//go:build !race

package kith_test

// crowd is how many nodes a test has that wants many.
const crowd = 50
