package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// units by their suffix: decimal ones as in 60MB, binary ones as in 1GiB.
var units = map[string]float64{
	"": 1, "b": 1,
	"k": 1e3, "kb": 1e3, "m": 1e6, "mb": 1e6, "g": 1e9, "gb": 1e9, "t": 1e12, "tb": 1e12,
	"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}

// A size is a number of bytes; as a flag it reads 60MB, 1.5GiB or 1000.
type size int64

// Set parses a size.
func (s *size) Set(text string) error {
	text = strings.TrimSpace(text)
	digits := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	unit, ok := units[strings.ToLower(strings.TrimSpace(text[len(digits):]))]
	value, err := strconv.ParseFloat(digits, 64)
	// ParseFloat also takes 1e3, 0x1p4 and 1_000, which no one means here.
	if !ok || err != nil || strings.Trim(digits, "0123456789.") != "" {
		return fmt.Errorf("%q isn't a size such as 60MB or 1GiB", text)
	}
	if value*unit >= math.MaxInt64 {
		return fmt.Errorf("%q is too large", text)
	}
	*s = size(value * unit)
	return nil
}

// String formats with three digits in decimal units, as 60.0 MB.
func (s size) String() string {
	if s < 1000 {
		return fmt.Sprintf("%d B", int64(s))
	}
	value := float64(s)
	for _, unit := range []string{"kB", "MB", "GB"} {
		value /= 1000
		if value < 999.5 {
			return threeDigits(value) + " " + unit
		}
	}
	return threeDigits(value/1000) + " TB"
}

// Type names the flag's value in help texts.
func (s *size) Type() string { return "size" }

func threeDigits(v float64) string {
	switch {
	case v < 9.995:
		return fmt.Sprintf("%.2f", v)
	case v < 99.95:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.0f", v)
	}
}

// rate formats bytes per time, as 310 MB/s.
func rate(n int64, d time.Duration) string {
	if d <= 0 {
		return "-"
	}
	return size(float64(n)/d.Seconds()).String() + "/s"
}

// brief rounds a duration to three digits or so.
func brief(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	default:
		return d.Round(time.Second).String()
	}
}
