//! Whether bytes that stream past are a tar, as a container engine needs a layer to be.

use crate::header::{BLOCK, Extension, Headers, Kind, MAX_EXTENSION, Step, padded};

/// Follows a layer's headers while the layer is read for another purpose.
#[derive(Debug)]
pub(crate) struct TarCheck {
    headers: Headers,
    state: State,
    blocks: u64,
}

#[derive(Debug)]
enum State {
    /// Filling a header.
    Header(Vec<u8>),
    /// Passing over so many bytes.
    Data(u64),
    /// Filling a record; its data's size, and what has come of data and padding.
    Record(Extension, usize, Vec<u8>),
    /// Filling a block of a sparse file's map; the size of the data behind it.
    SparseMap(Vec<u8>, u64),
    /// The end-of-archive marker has come; what follows it is ignored, as readers do.
    End,
    /// Not a tar.
    Bad,
}

impl TarCheck {
    pub(crate) fn new() -> Self {
        Self {
            headers: Headers::default(),
            state: State::Header(Vec::with_capacity(BLOCK)),
            blocks: 0,
        }
    }

    /// Takes the next bytes in.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let state = std::mem::replace(&mut self.state, State::Bad);
            self.state = match state {
                State::End | State::Bad => {
                    self.state = state;
                    return;
                }
                State::Data(left) => {
                    let n = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    bytes = bytes.get(n..).unwrap_or_default();
                    data(left - n as u64)
                }
                State::Header(mut block) => {
                    fill(&mut block, BLOCK, &mut bytes);
                    if let Ok(full) = <[u8; BLOCK]>::try_from(block.as_slice()) {
                        self.blocks += 1;
                        self.header(&full)
                    } else {
                        State::Header(block)
                    }
                }
                State::Record(extension, size, mut record) => {
                    let whole = size.next_multiple_of(BLOCK);
                    fill(&mut record, whole, &mut bytes);
                    if record.len() < whole {
                        State::Record(extension, size, record)
                    } else {
                        match self
                            .headers
                            .extension(extension, record.get(..size).unwrap_or_default())
                        {
                            Ok(()) => data(0),
                            Err(_) => State::Bad,
                        }
                    }
                }
                State::SparseMap(mut block, left) => {
                    fill(&mut block, BLOCK, &mut bytes);
                    match block.get(504) {
                        _ if block.len() < BLOCK => State::SparseMap(block, left),
                        Some(0) => data(left),
                        _ => State::SparseMap(Vec::new(), left),
                    }
                }
            };
        }
    }

    fn header(&mut self, block: &[u8; BLOCK]) -> State {
        match self.headers.header(block) {
            Ok(Step::End) => State::End,
            Ok(Step::Extension(extension, size)) if size <= MAX_EXTENSION => match size {
                0 => self
                    .headers
                    .extension(extension, &[])
                    .map_or(State::Bad, |()| data(0)),
                _ => State::Record(extension, size as usize, Vec::new()),
            },
            Ok(Step::Member(head)) => match (padded(head.data_size()), head.kind) {
                (None, _) => State::Bad,
                (Some(size), Kind::Sparse(true)) => State::SparseMap(Vec::new(), size),
                (Some(size), _) => data(size),
            },
            Ok(Step::Extension(..)) | Err(_) => State::Bad,
        }
    }

    /// The verdict, once all bytes have come. As container engines do, it lets pass a tar whose
    /// end-of-archive marker is missing.
    pub(crate) fn is_tar(&self) -> bool {
        match &self.state {
            State::End => true,
            State::Header(block) => self.blocks > 0 && block.is_empty(),
            _ => false,
        }
    }
}

fn data(left: u64) -> State {
    if left == 0 {
        State::Header(Vec::with_capacity(BLOCK))
    } else {
        State::Data(left)
    }
}

fn fill(block: &mut Vec<u8>, size: usize, bytes: &mut &[u8]) {
    let n = (size - block.len()).min(bytes.len());
    let (head, rest) = bytes.split_at(n);
    block.extend_from_slice(head);
    *bytes = rest;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn is_tar(bytes: &[u8], step: usize) -> bool {
        let mut check = TarCheck::new();
        bytes.chunks(step).for_each(|chunk| check.feed(chunk));
        check.is_tar()
    }

    fn sample() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, size) in [
            ("a".to_owned(), 0),
            ("b/".to_owned() + &"long".repeat(60), 700),
            ("c".into(), 512),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(size);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, std::io::repeat(9).take(size))
                .unwrap();
        }
        tar.append_pax_extensions([("SCHILY.xattr.user.x", &b"1\n2"[..])])
            .unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(3);
        tar.append_data(&mut header, "d", &b"abc"[..]).unwrap();
        tar.into_inner().unwrap()
    }

    use std::io::Read;

    #[test]
    fn a_tar_is_one_however_it_is_cut() {
        let tar = sample();
        for step in [1, 7, 511, 512, 513, 100_000] {
            assert!(is_tar(&tar, step), "step {step}");
        }
        assert!(is_tar(&[0; 1024], 512), "the empty tar");
        let without_marker = &tar[..tar.len() - 1024];
        assert!(is_tar(without_marker, 512));
    }

    #[test]
    fn other_bytes_are_none() {
        let tar = sample();
        assert!(!is_tar(b"", 1));
        assert!(!is_tar(b"not a real tarball", 5));
        assert!(!is_tar(&[1; 2048], 512));
        for cut in [100, 600, 1500, tar.len() - 1024 - 100] {
            assert!(!is_tar(&tar[..cut], 512), "cut at {cut}");
        }
        let mut damaged = tar;
        damaged[0] = b'x';
        assert!(!is_tar(&damaged, 512));
    }
}
