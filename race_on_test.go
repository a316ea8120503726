//go:build race

package kith_test

// crowd is how many nodes a test has that wants many: fewer where each is ten times slower.
const crowd = 12
