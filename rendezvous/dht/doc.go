package dht

import (
	_ "github.com/anacrolix/dht/v2"
	_ "github.com/anacrolix/dht/v2/exts/getput"
)
