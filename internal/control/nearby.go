package control

import "context"

// nearby tells the client who is in pairing mode on the LAN, until it goes away.
func (s *Server) nearby(st *stream) (Reply, error) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	in := inputs(ctx, st)
	lists, err := s.node.Nearby(ctx)
	if err != nil {
		return Reply{}, noNearby(err)
	}
	for {
		select {
		case list, ok := <-lists:
			if !ok {
				return Reply{}, nil
			}
			if st.send(Reply{Nearby: list}) != nil {
				return Reply{}, errTaken
			}
		case _, ok := <-in:
			if !ok {
				return Reply{}, errTaken
			}
		}
	}
}

// waiting announces that this device waits to be given a code, until the client
// goes away.
func (s *Server) waiting(st *stream) (Reply, error) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	in := inputs(ctx, st)
	stop, err := s.node.AnnounceNearby(ctx)
	if err != nil {
		return Reply{}, noNearby(err)
	}
	defer stop()
	for {
		select {
		case _, ok := <-in:
			if !ok {
				return Reply{}, errTaken
			}
		case <-ctx.Done():
			return Reply{}, nil
		}
	}
}

func noNearby(err error) error {
	return &Error{
		Kind: KindOther, Text: err.Error(),
		Hint: "kith config rendezvous lan on turns the LAN on; kith pair and kith join work without it",
	}
}
