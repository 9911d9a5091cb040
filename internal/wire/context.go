package wire

// Context ids (protocol 3.4). A stream's id is the id of its context.
const (
	// FirstPath is path 0's own context, which is TLS's.
	FirstPath uint32 = 0
	// MaxStreamID is the highest id of a stream.
	MaxStreamID uint32 = 0x3fff_ffff
	// Control is the control context.
	Control uint32 = 0x8000_0000

	laterPaths uint32 = 0xc000_0000
)

// MaxStreams is the highest value of a stream limit (protocol 5.5).
const MaxStreams = 1<<29 - 1

// PathContext returns the id of a path's own context.
func PathContext(path uint16) uint32 {
	if path == 0 {
		return FirstPath
	}
	return laterPaths | uint32(path)
}

// IsStream tells whether id is that of a stream.
func IsStream(id uint32) bool { return id != FirstPath && id <= MaxStreamID }

// IsPath tells whether id is that of a path's own context.
func IsPath(id uint32) bool {
	return id == FirstPath || id > laterPaths && id <= laterPaths|0xffff
}

// ClientOpened tells which side opens the stream id: odd ones the client,
// even ones the server.
func ClientOpened(id uint32) bool { return id&1 == 1 }
