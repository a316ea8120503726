package code

import (
	"testing"
	"time"
)

func BenchmarkParse(b *testing.B) {
	for name, text := range map[string]string{"words": someWords, "number": someNumber, "URI": biggest(b).URI()} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(text, time.Time{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkKeys(b *testing.B) {
	for name, text := range map[string]string{"words": someWords, "number": someNumber} {
		c := mustParse(b, text)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Keys(testNow); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkQR(b *testing.B) {
	uri := biggest(b).URI()
	for b.Loop() {
		if _, err := EncodeQR(uri); err != nil {
			b.Fatal(err)
		}
	}
}
