package files

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func tlsConfig(b *testing.B) *tls.Config {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		b.Fatal(err)
	}
	return &tls.Config{
		Certificates:       []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true, //nolint:gosec // a benchmark
	}
}

// benchDir is a folder in memory where there is one, so that the disk is not what
// is measured.
func benchDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "kith-files")
	if err != nil {
		return b.TempDir()
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// tlsLab is two services with a TLS lane between them.
func tlsLab(b *testing.B, dir string) *Service {
	b.Helper()
	cfg := tlsConfig(b)
	recv, err := New(Config{Dir: dir, Policy: acceptAll})
	if err != nil {
		b.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go recv.Handle(ctx, "a", tls.Server(Coalesce(c), cfg))
		}
	}()
	send, err := New(Config{Dial: func(ctx context.Context, _ string, _ Lane) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", ln.Addr().String())
		if err != nil {
			return nil, err
		}
		return tls.Client(Coalesce(c), cfg), nil
	}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cancel(); ln.Close(); <-done; send.Close(); recv.Close() })
	return send
}

const benchSize = 1 << 30

func benchSource(b *testing.B) string {
	b.Helper()
	src := filepath.Join(benchDir(b), "src")
	f, err := os.Create(src)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	chunk := make([]byte, 1<<20)
	_, _ = rand.Read(chunk)
	for i := range benchSize >> 20 {
		chunk[0] = byte(i)
		if _, err := f.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	return src
}

// BenchmarkLargeFile compares one file of 1 GiB, by the engine and by io.Copy from
// file to file, over the same TLS configuration on loopback. Compare s/op and
// cpu-ns/B; both ends are this process.
func BenchmarkLargeFile(b *testing.B) {
	src := benchSource(b)
	for _, sum := range []Sum{SumBLAKE3, SumCRC32C} {
		b.Run(fmt.Sprint("engine/sum", sum), func(b *testing.B) {
			dir := benchDir(b)
			send := tlsLab(b, dir)
			b.SetBytes(benchSize)
			begin, n := cpuTime(), 0
			for b.Loop() {
				n++
				if _, err := send.Send(b.Context(), "b", []string{src}, SendOptions{Sum: sum}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				os.Remove(filepath.Join(dir, "src"))
				b.StartTimer()
			}
			b.ReportMetric(float64(cpuTime()-begin)/float64(n)/benchSize, "cpu-ns/B")
		})
	}
	for _, file := range []bool{true, false} {
		b.Run(fmt.Sprint("iocopy/file=", file), func(b *testing.B) {
			dir := benchDir(b)
			cfg := tlsConfig(b)
			b.SetBytes(benchSize)
			begin, n := cpuTime(), 0
			for b.Loop() {
				n++
				plainCopy(b, cfg, src, filepath.Join(dir, "dst"), file)
			}
			b.ReportMetric(float64(cpuTime()-begin)/float64(n)/benchSize, "cpu-ns/B")
		})
	}
}

func plainCopy(b *testing.B, cfg *tls.Config, src, dst string, file bool) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			c, err := ln.Accept()
			if err != nil {
				return err
			}
			defer c.Close()
			var w io.Writer = struct{ io.Writer }{io.Discard}
			if file {
				os.Remove(dst)
				f, err := os.Create(dst)
				if err != nil {
					return err
				}
				defer f.Close()
				w = f
			}
			_, err = io.Copy(w, tls.Server(c, cfg))
			return err
		}()
	}()
	in, err := os.Open(src)
	if err != nil {
		b.Fatal(err)
	}
	defer in.Close()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer raw.Close()
	c := tls.Client(raw, cfg)
	if _, err := io.Copy(c, in); err != nil {
		b.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		b.Fatal(err)
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

// BenchmarkSmallFiles sends 100,000 files of 1 kB.
func BenchmarkSmallFiles(b *testing.B) {
	src := filepath.Join(benchDir(b), "src")
	content := make([]byte, 1000)
	for i := range 100_000 {
		dir := filepath.Join(src, fmt.Sprint(i/1000))
		if i%1000 == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), content, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	dir := benchDir(b)
	send := tlsLab(b, dir)
	begin, n := cpuTime(), 0
	for b.Loop() {
		n++
		if _, err := send.Send(b.Context(), "b", []string{src}, SendOptions{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		os.RemoveAll(filepath.Join(dir, "src"))
		b.StartTimer()
	}
	b.ReportMetric((cpuTime()-begin).Seconds()/float64(n), "cpu-s/op")
}

// BenchmarkChunkSum is what hashing costs.
func BenchmarkChunkSum(b *testing.B) {
	buf := make([]byte, chunkSize)
	for _, sum := range []Sum{SumBLAKE3, SumCRC32C} {
		b.Run(fmt.Sprint(sum), func(b *testing.B) {
			b.SetBytes(chunkSize)
			for b.Loop() {
				chunkSum(sum, buf, 0)
			}
		})
	}
}
