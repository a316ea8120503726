package doctor

import "sync"

// onlyOnce is a value that several checks want and the first of them finds out.
type onlyOnce[T any] struct {
	once  sync.Once
	value T
}

// once returns what f returned when it was called first for a name in this run. The others
// wait for it; f ends with the check of the first.
func once[T any](e *Env, name string, f func() T) T {
	e.mu.Lock()
	if e.facts == nil {
		e.facts = make(map[string]any)
	}
	o, ok := e.facts[name].(*onlyOnce[T])
	if !ok {
		o = new(onlyOnce[T])
		e.facts[name] = o
	}
	e.mu.Unlock()
	o.once.Do(func() { o.value = f() })
	return o.value
}
