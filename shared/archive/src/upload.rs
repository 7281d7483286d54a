//! The uploaded file: plain, or compressed as a whole and then unpacked into a temporary file.

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use flate2::bufread::MultiGzDecoder;

use crate::{ArchiveError, ImportOptions, Phase, Progress, layer::Budget};

/// What bytes begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Judges by the first bytes; four are enough.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        match bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// A reader of what `input` is the compression of.
    pub(crate) fn decoder<'a>(self, input: impl Read + 'a) -> std::io::Result<Box<dyn Read + 'a>> {
        let input = BufReader::with_capacity(128 * 1024, input);
        Ok(match self {
            Self::None => Box::new(input),
            Self::Gzip => Box::new(MultiGzDecoder::new(input)),
            Self::Zstd => Box::new(zstd::Decoder::with_buffer(input)?),
        })
    }
}

/// Opens the upload; a compressed one as the temporary file it was unpacked to, which has no name.
/// Gives the file and its size.
pub(crate) fn open(
    upload: &Path,
    options: &ImportOptions,
    budget: &Budget,
    progress: &dyn Progress,
) -> Result<(File, u64), ArchiveError> {
    let file = File::open(upload).map_err(ArchiveError::io("opening the upload"))?;
    let len = file
        .metadata()
        .map_err(ArchiveError::io("opening the upload"))?
        .len();
    let mut magic = [0; 4];
    let known = usize::try_from(len).unwrap_or(usize::MAX).min(magic.len());
    file.read_exact_at(&mut magic[..known], 0)
        .map_err(ArchiveError::io("reading the upload"))?;
    match Compression::of(&magic) {
        Compression::None => Ok((file, len)),
        compression => {
            progress.phase(Phase::Unpacking);
            unpack(file, compression, options, budget, progress)
        }
    }
}

fn unpack(
    file: File,
    compression: Compression,
    options: &ImportOptions,
    budget: &Budget,
    progress: &dyn Progress,
) -> Result<(File, u64), ArchiveError> {
    const NAME: &str = "the upload";
    let mut spool = tempfile::tempfile_in(&options.spool_dir).map_err(ArchiveError::io(
        "making a temporary file to unpack the upload into",
    ))?;
    let damaged = |e| ArchiveError::decompressing(NAME, e);
    let mut decoder = compression.decoder(file).map_err(damaged)?;
    let mut buffer = vec![0; 256 * 1024];
    let mut len = 0;
    loop {
        if progress.is_canceled() {
            return Err(ArchiveError::Canceled);
        }
        let n = decoder.read(&mut buffer).map_err(damaged)?;
        let Some(bytes) = buffer.get(..n).filter(|b| !b.is_empty()) else {
            break;
        };
        budget.spend(NAME, n as u64)?;
        len += n as u64;
        spool
            .write_all(bytes)
            .map_err(ArchiveError::io("unpacking the upload"))?;
    }
    spool
        .seek(SeekFrom::Start(0))
        .map_err(ArchiveError::io("unpacking the upload"))?;
    Ok((spool, len))
}
