package osnet

// SentSYN is what the kernel knows of the SYN by which it opened a connection,
// and of what came of it.
type SentSYN struct {
	HopLimit   int    // of IPv6, or the TTL of IPv4; 0: not known
	MSS        int    // that was told the peer
	PeerMSS    int    // that the peer seems to have told; 0: something else keeps segments shorter
	Scale      int    // of the window, where it is negotiated
	Timestamp  uint32 // the connection's clock of now, in milliseconds, if HasClock
	HasClock   bool
	Negotiated uint8 // bit set of Negotiated...
	Asked      uint8 // likewise: what the system asks for
	Known      uint8 // likewise: of these, what it tells
}

// What TCP negotiates by its first segments, as the bits of TCP_INFO.
const (
	NegotiatedTimestamps = 1 << iota
	NegotiatedSACK
	NegotiatedScale
	NegotiatedECN
)
