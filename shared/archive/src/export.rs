//! Tar files that are the same whenever and wherever they are written from the same content.

use std::io::{self, Read, Write};

use tar::{Builder, EntryType, Header};

/// Writes a tar whose bytes depend on nothing but the names and contents given, in the order given: no times,
/// no owners, fixed modes.
pub struct TarWriter<W: Write>(Builder<W>);

impl<W: Write> TarWriter<W> {
    /// Writes to `output`, which should be buffered.
    pub fn new(output: W) -> Self {
        Self(Builder::new(output))
    }

    /// Adds a file of these bytes.
    pub fn append_bytes(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.append_file(path, bytes, bytes.len() as u64)
    }

    /// Adds a file of exactly `size` bytes read from `content`. After an error the tar is of no use.
    pub fn append_file(&mut self, path: &str, content: impl Read, size: u64) -> io::Result<()> {
        let mut content = Exactly {
            inner: content,
            left: size,
        };
        self.0
            .append_data(&mut header(EntryType::Regular, 0o644, size), path, &mut content)?;
        content.check_end()
    }

    /// Adds a directory. Directories need not be added for the files in them to be readable.
    pub fn append_dir(&mut self, path: &str) -> io::Result<()> {
        let path = format!("{}/", path.trim_end_matches('/'));
        self.0
            .append_data(&mut header(EntryType::Directory, 0o755, 0), path, io::empty())
    }

    /// Writes the end-of-archive marker and gives the output back, flushed.
    pub fn finish(self) -> io::Result<W> {
        let mut output = self.0.into_inner()?;
        output.flush()?;
        Ok(output)
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Gives as many bytes as promised, or an error: a header that lies would shift all that follows.
struct Exactly<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let Some(buffer) = buffer.get_mut(..wanted).filter(|b| !b.is_empty()) else {
            return Ok(0);
        };
        let n = self.inner.read(buffer)?;
        if n == 0 {
            let text = format!("the file ends {} bytes before its size", self.left);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        self.left -= n as u64;
        Ok(n)
    }
}

impl<R: Read> Exactly<R> {
    fn check_end(&mut self) -> io::Result<()> {
        let mut more = [0];
        match self.inner.read(&mut more)? {
            0 => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the file is longer than its size",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn write() -> Vec<u8> {
        let mut tar = TarWriter::new(Vec::new());
        tar.append_dir("busybox").unwrap();
        tar.append_bytes("busybox/a", b"abc").unwrap();
        tar.append_file(&format!("busybox/{}", "long/".repeat(60)), &[5; 1000][..], 1000)
            .unwrap();
        tar.finish().unwrap()
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let tar = write();
        assert_eq!(tar, write());
        let mut archive = tar::Archive::new(&tar[..]);
        let members: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                let header = entry.header();
                assert_eq!(
                    (
                        header.mtime().unwrap(),
                        header.uid().unwrap(),
                        header.gid().unwrap()
                    ),
                    (0, 0, 0)
                );
                (entry.path().unwrap().display().to_string(), bytes.len())
            })
            .collect();
        assert_eq!(members[0], ("busybox/".to_owned(), 0));
        assert_eq!(members[1], ("busybox/a".to_owned(), 3));
        assert_eq!((members[2].0.len() > 300, members[2].1), (true, 1000));
    }

    #[test]
    fn a_file_that_changed_its_size_is_an_error() {
        let mut tar = TarWriter::new(Vec::new());
        let short = tar.append_file("a", &b"ab"[..], 3).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        let long = tar.append_file("a", &b"abcd"[..], 3).unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::InvalidData);
    }
}
