//go:build race

package link

// raceDetector says whether the race detector is on: it makes pools forget.
const raceDetector = true
