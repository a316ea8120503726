// Package files carries files and folders between two devices, over as many streams
// as there are. It is given a way to dial the other device and connections that came
// from it; it knows nothing of the network between. The streams must be authentic
// and secret already (the tunnel's, or TLS with the devices' own keys): this package
// adds no encryption.
//
//	s, err := files.New(files.Config{Dir: downloads, Dial: dial, Policy: policy})
//	go s.Serve(ctx, listener, whoIsIt)              // on files.Port
//	res, err := s.Send(ctx, "laptop", []string{"photos"}, files.SendOptions{})
//
// # What it promises
//
//   - Nothing is written outside of the target folder, whatever the sender says, and
//     nothing outside of a share can be named. All paths go through os.Root.
//   - Nothing that is there is overwritten unless that is asked for, and nothing half
//     is ever seen under its name: a transfer is put together in a hidden folder and
//     moved into place when all of it is there, one rename for each top-level name.
//   - A transfer goes on after a lost stream, a lost connection, and a killed process
//     on either side. What was acknowledged is not sent again.
//   - Every chunk and every file is compared with what the sender read.
//   - What a right allowed ends when the right does (Recheck, EndPeer), with a word to
//     both sides; so it does when a person ends it (Decline, Transfer.Cancel).
//   - Memory does not grow with the number or the size of files: about 6 MiB for what
//     the sender reads ahead, and less than 1 MiB for each stream at either end, plus
//     a bit for each chunk of the large files that are being received.
//
// # What "acknowledged" means
//
// A frame is acknowledged when its chunk is with the receiver's kernel and in the
// journal: it outlives the receiving process. It does not outlive a power cut until
// the kernel has written it. After a restart of the machine (on Linux, as its boot ID
// tells; elsewhere after any restart of the process) the chunks of files that are not
// whole are read and compared with their digests, and small files that were written
// after the last sync, one a minute, are sent again (on Linux only: elsewhere a small
// file with the right size and time is believed). Config.Durable has everything on the
// disk before the sender hears that it is done; otherwise that takes the system some
// seconds, as after any copy.
//
// # Digests
//
// Each chunk has a digest, made when the sender has read it and compared before it is
// written. The default is BLAKE3. SumCRC32C costs less, see docs/files.md for the
// measurements: as the streams are authentic, a digest only has to find what breaks
// by accident in the memory and the programs of both devices, and CRC-32C of 256 KiB
// misses one such error in four billion. The digest of a file is the BLAKE3 of its
// chunks' digests, compared when the file is whole. It finds a file whose content
// changed between two runs although its size and time did not.
//
// # Streams
//
// One control stream and up to 128 lanes belong to a transfer. The side that starts it
// dials all of them (DialFunc); Transfer.SetLanes adds and ends lanes while it runs.
// Chunks go to whichever lane has room, in any order. A lane that dies gives back what
// was not acknowledged on it. A lane holds as much as it carries in about two of its
// round trips and a quarter of a second, so that a slow one does not hold up the end.
//
// The wire format and the journal are in docs/files.md.
package files
