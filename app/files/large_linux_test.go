package files

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// largeEnv asks for the sizes that take minutes: a million files, and 100 GB.
const largeEnv = "KITH_FILES_LARGE"

// peakMemory is the most that a process had in memory of its own, in bytes.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("no peak of memory")
	return 0
}

// memoryDir is a folder in memory with room for so many bytes and files.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "kith-files")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// carry sends src from one process to another. It returns their peaks of memory in
// bytes, and what the sender said: bytes, resumed bytes and notes.
func carry(t *testing.T, src, dir string) (send, recv int64, said []string) {
	t.Helper()
	to := startEnd(t, "receive "+dir+" 127.0.0.1:0")
	defer to.kill()
	from := startEnd(t, "hold "+to.line(t)[1]+" "+src)
	defer from.kill()
	from.line(t)
	for from.out.Scan() {
		if said = strings.Fields(from.out.Text()); said[0] == "sent" {
			return peakMemory(t, from.cmd.Process.Pid), peakMemory(t, to.cmd.Process.Pid), said[1:]
		}
	}
	t.Fatal("the sender failed")
	return 0, 0, nil
}

// maxPeak is what either end may have in memory, however many and large the files are:
// the idle process has about 12 MiB.
const maxPeak = 48 << 20

func checkPeaks(t *testing.T, send, recv int64) {
	t.Helper()
	if !raceDetector && max(send, recv) > maxPeak {
		t.Errorf("the sender had %d MiB in memory and the receiver %d", send>>20, recv>>20)
	}
}

// TestManyFiles sends many files of 10 to 100 bytes, and holds that memory does not grow
// with them: 50,000, or with KITH_FILES_LARGE a million.
func TestManyFiles(t *testing.T) {
	n := 50_000
	if os.Getenv(largeEnv) != "" {
		n = 1_000_000
	}
	src, dir := filepath.Join(memoryDir(t), "src"), memoryDir(t)
	content := bytes.Repeat([]byte("0123456789"), 10)
	var size int64
	for i := range n {
		folder := filepath.Join(src, fmt.Sprint(i%1000))
		if i < 1000 {
			if err := os.MkdirAll(folder, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		part := content[i%10 : i%10+10+i%81]
		size += int64(len(part))
		if err := os.WriteFile(filepath.Join(folder, fmt.Sprint(i)), part, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	send, recv, said := carry(t, src, dir)
	t.Logf("%d files of %d bytes in %s; peaks of memory: sender %d MiB, receiver %d MiB",
		n, size, time.Since(begin).Round(10*time.Millisecond), send>>20, recv>>20)
	if said[0] != fmt.Sprint(size) || said[2] != "0" {
		t.Errorf("the sender says %v, not %d bytes", said, size)
	}
	checkPeaks(t, send, recv)
	count, bad := 0, 0
	err := filepath.WalkDir(filepath.Join(dir, "src"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		i, err := strconv.Atoi(d.Name())
		if err != nil {
			return err
		}
		count++
		if got, err := os.ReadFile(p); err != nil || !bytes.Equal(got, content[i%10:i%10+10+i%81]) {
			bad++
		}
		return nil
	})
	if err != nil || count != n || bad > 0 {
		t.Errorf("%d files arrived, %d of them wrong: %v", count, bad, err)
	}
}

// TestLongFile sends a file with data here and there and holes between, and holds that
// memory does not grow with its length: 20 GB, or with KITH_FILES_LARGE 100 GB, of which
// 2 GB are data.
func TestLongFile(t *testing.T) {
	size, data, each := int64(20e9), 20, int64(1<<20)
	if os.Getenv(largeEnv) != "" {
		size, data, each = 100e9, 20, 100<<20
	}
	src, dir := filepath.Join(memoryDir(t), "disk.img"), t.TempDir()
	// A file's holes count when the receiver looks for room, as nobody knows before where
	// they are; this file system says that there is enough.
	if err := syscall.Mount("kith", dir, "tmpfs", 0, "size=128g"); err == nil {
		t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	} else if free, ok := freeSpace(dir); ok && free < size+spaceReserve {
		t.Skipf("less than %d GB are free", size/1e9)
	}
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Skip("no sparse files here:", err)
	}
	buf := make([]byte, 1<<20)
	for i := range data {
		for at := int64(0); at < each; at += int64(len(buf)) {
			for j := range buf {
				buf[j] = byte(i*7 + j + int(at>>20) + 1)
			}
			// The last one at the end of the file.
			if _, err := f.WriteAt(buf, (size-each)/int64(data-1)*int64(i)+at); err != nil {
				t.Fatal(err)
			}
		}
	}
	begin := time.Now()
	send, recv, said := carry(t, src, dir)
	t.Logf("%d GB, of which %d MB are data, in %s; peaks of memory: sender %d MiB, receiver %d MiB",
		size/1e9, int64(data)*each/1e6, time.Since(begin).Round(10*time.Millisecond), send>>20, recv>>20)
	if said[0] != fmt.Sprint(size) || said[2] != "0" {
		t.Errorf("the sender says %v, not %d bytes", said, size)
	}
	checkPeaks(t, send, recv)
	g, err := os.Open(filepath.Join(dir, "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	sameData(t, f, g, size)
}

// sameData compares the runs of data of two sparse files, and that there is no more data
// in the second but for what chunks are longer.
func sameData(t *testing.T, f, g *os.File, size int64) {
	t.Helper()
	a, b := make([]byte, chunkSize), make([]byte, chunkSize)
	var was, is int64
	for off := int64(0); off < size; {
		begin, end := nextData(f, off, size)
		was += end - begin
		for at := begin; at < end; at += chunkSize {
			n := min(end-at, chunkSize)
			if _, err := f.ReadAt(a[:n], at); err != nil {
				t.Fatal(err)
			}
			if _, err := g.ReadAt(b[:n], at); err != nil || !bytes.Equal(a[:n], b[:n]) {
				t.Fatalf("other bytes at %d: %v", at, err)
			}
		}
		off = end
	}
	for off := int64(0); off < size; {
		begin, end := nextData(g, off, size)
		is += end - begin
		off = end
	}
	if fi, err := g.Stat(); err != nil || fi.Size() != size {
		t.Errorf("%v %v", fi, err)
	}
	if is > was+was/2+64*chunkSize {
		t.Errorf("%d bytes of data became %d", was, is)
	}
}
