//go:build !linux

package osnet

import "context"

func newWatch() func(context.Context, func(Event)) { return polling(interfaces, pollEvery) }

func snapshot() (*network, error) { return interfaces() }
