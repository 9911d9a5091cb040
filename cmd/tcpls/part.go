package main

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
)

// A part is an unfinished file, beside the place of the whole one, on either
// end. Its name holds a mark of the content that it is to become, so that bytes
// of two versions never meet in one file.

// partName returns the part of the file called name whose version is told by
// mark: an entity tag and a size, or a digest.
func partName(name, mark string) string {
	sum := sha256.Sum256([]byte(mark))
	return name + "." + hex.EncodeToString(sum[:8]) + ".part"
}

var partPattern = regexp.MustCompile(`\.[0-9a-f]{16}\.part$`)

// isPartName reports whether name may be one of partName's.
func isPartName(name string) bool { return partPattern.MatchString(name) }
