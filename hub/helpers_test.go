package hub

import (
	"bytes"
	"os"
	"sync"
)

// chmod700 makes a test's directory what a state directory must be.
func chmod700(dir string) error {
	if dir == "" {
		return nil
	}
	return os.Chmod(dir, 0o700)
}

// syncBuffer is a buffer for a logger.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
