//go:build race

package files

// raceDetector takes several times the memory.
const raceDetector = true
