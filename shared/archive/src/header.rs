//! Tar headers, one block at a time, for the index of an archive and for the check of its layers.
//!
//! The `tar` crate parses the header's fields; what spans several headers (long names, PAX records) is put
//! together here, because the crate reads those into memory whatever their size. Where readers differ, the
//! size and name are the ones that crate takes; what would make two readers see two archives is refused.
//!
//! Sources: POSIX.1-2017 `pax`, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".

use tar::{EntryType, Header};

/// Bytes of a header; data is padded to a multiple of it.
pub(crate) const BLOCK: usize = 512;

/// Bytes of a PAX or long name record at most, as Go's reader has it.
pub(crate) const MAX_EXTENSION: u64 = 1024 * 1024;

/// What a header block says.
#[derive(Debug)]
pub(crate) enum Step {
    /// The end of the archive.
    End,
    /// So many bytes follow, to be given to [`Headers::extension`].
    Extension(Extension, u64),
    /// A member.
    Member(Head),
}

/// Records that describe the next member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extension {
    LongName,
    LongLink,
    Pax,
    /// Describes all members after it; nothing in it concerns us.
    Global,
}

/// What sort of thing a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Hardlink,
    /// A file with holes. `true`: another block of its map follows the header.
    Sparse(bool),
    /// A device or FIFO.
    Device(&'static str),
    Unknown,
}

/// A member's description.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) name: Vec<u8>,
    /// Target of a link, else empty.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    /// The size that header or PAX record gives.
    pub(crate) size: u64,
}

impl Head {
    /// Bytes of data that follow. Links, directories and devices have none whatever their size field says.
    pub(crate) const fn data_size(&self) -> u64 {
        match self.kind {
            Kind::File | Kind::Sparse(_) | Kind::Unknown => self.size,
            Kind::Directory | Kind::Symlink | Kind::Hardlink | Kind::Device(_) => 0,
        }
    }
}

/// Why a block is no header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadHeader(pub(crate) &'static str);

/// State between headers.
#[derive(Debug, Default)]
pub(crate) struct Headers {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

#[derive(Debug, Default)]
struct Pax {
    path: Option<Vec<u8>>,
    linkpath: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl Headers {
    /// Takes the next header block.
    pub(crate) fn header(&mut self, block: &[u8; BLOCK]) -> Result<Step, BadHeader> {
        if block.iter().all(|b| *b == 0) {
            let pending = self.long_name.is_some() || self.long_link.is_some() || self.pax.is_some();
            return if pending {
                Err(BadHeader(
                    "the archive ends where a member should follow its long name",
                ))
            } else {
                Ok(Step::End)
            };
        }
        let header = Header::from_byte_slice(block);
        if header.cksum().ok() != Some(checksum(block)) {
            return Err(BadHeader("a header's checksum is wrong"));
        }
        let size = header
            .entry_size()
            .map_err(|_| BadHeader("a header's size is not a number"))?;
        let known_format = header.as_gnu().is_some() || header.as_ustar().is_some();
        let extension = match header.entry_type() {
            EntryType::GNULongName if known_format => Some(Extension::LongName),
            EntryType::GNULongLink if known_format => Some(Extension::LongLink),
            EntryType::XHeader if known_format => Some(Extension::Pax),
            EntryType::XGlobalHeader => Some(Extension::Global),
            _ => None,
        };
        match extension {
            Some(_) if size > MAX_EXTENSION => Err(BadHeader("a member's name or attributes are too large")),
            Some(extension) => Ok(Step::Extension(extension, size)),
            None => self.member(header, size),
        }
    }

    fn member(&mut self, header: &Header, header_size: u64) -> Result<Step, BadHeader> {
        let pax = self.pax.take().unwrap_or_default();
        let name = one_of(self.long_name.take(), pax.path, || {
            header.path_bytes().into_owned()
        })?;
        let link = one_of(self.long_link.take(), pax.linkpath, || {
            header
                .link_name_bytes()
                .map(std::borrow::Cow::into_owned)
                .unwrap_or_default()
        })?;
        let kind = match header.entry_type() {
            _ if pax.sparse => Kind::Sparse(false),
            EntryType::GNUSparse => Kind::Sparse(header.as_gnu().is_some_and(tar::GnuHeader::is_extended)),
            // Before ustar a directory was a file whose name ends in a slash.
            EntryType::Regular if name.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::Hardlink,
            EntryType::Char => Kind::Device("character device"),
            EntryType::Block => Kind::Device("block device"),
            EntryType::Fifo => Kind::Device("FIFO"),
            _ => Kind::Unknown,
        };
        Ok(Step::Member(Head {
            name,
            link: if matches!(kind, Kind::Symlink | Kind::Hardlink) {
                link
            } else {
                Vec::new()
            },
            kind,
            size: pax.size.unwrap_or(header_size),
        }))
    }

    /// Takes the data that a [`Step::Extension`] announced, without its padding.
    pub(crate) fn extension(&mut self, extension: Extension, data: &[u8]) -> Result<(), BadHeader> {
        const TWICE: BadHeader = BadHeader("a member is described twice");
        match extension {
            Extension::Global => Ok(()),
            Extension::LongName => self
                .long_name
                .replace(long_name(data)?)
                .map_or(Ok(()), |_| Err(TWICE)),
            Extension::LongLink => self
                .long_link
                .replace(long_name(data)?)
                .map_or(Ok(()), |_| Err(TWICE)),
            Extension::Pax => self
                .pax
                .replace(pax_records(data)?)
                .map_or(Ok(()), |_| Err(TWICE)),
        }
    }
}

/// Sum of all bytes, the checksum's own field taken as blanks.
fn checksum(block: &[u8; BLOCK]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|b| u32::from(*b)).sum::<u32>();
    sum(block) - sum(&block[148..156]) + 8 * u32::from(b' ')
}

/// A long name's record ends in one zero byte.
fn long_name(data: &[u8]) -> Result<Vec<u8>, BadHeader> {
    without_zeros(data.strip_suffix(&[0]).unwrap_or(data))
}

/// Some readers end a name at a zero byte, others don't.
fn without_zeros(name: &[u8]) -> Result<Vec<u8>, BadHeader> {
    if name.contains(&0) {
        return Err(BadHeader("a member's name holds a zero byte"));
    }
    Ok(name.to_vec())
}

/// GNU's and PAX's way to a long name exclude each other; readers differ in which one they take.
fn one_of(
    gnu: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
    short: impl FnOnce() -> Vec<u8>,
) -> Result<Vec<u8>, BadHeader> {
    match (gnu, pax) {
        (Some(_), Some(_)) => Err(BadHeader("a member has two long names")),
        (Some(long), None) | (None, Some(long)) => Ok(long),
        (None, None) => Ok(short()),
    }
}

/// Records of the form `<length> <key>=<value>\n`, length counting all of it.
fn pax_records(mut data: &[u8]) -> Result<Pax, BadHeader> {
    const MALFORMED: BadHeader = BadHeader("a PAX record is malformed");
    let mut pax = Pax::default();
    while !data.is_empty() {
        let blank = data.iter().position(|b| *b == b' ').ok_or(MALFORMED)?;
        let length = number(&data[..blank]).ok_or(MALFORMED)?;
        let length = usize::try_from(length).map_err(|_| MALFORMED)?;
        let record = data.get(blank + 1..length).ok_or(MALFORMED)?;
        let record = record.strip_suffix(b"\n").ok_or(MALFORMED)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or(MALFORMED)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let repeated = match key {
            b"path" => pax.path.replace(without_zeros(value)?).is_some(),
            b"linkpath" => pax.linkpath.replace(without_zeros(value)?).is_some(),
            b"size" => pax.size.replace(number(value).ok_or(MALFORMED)?).is_some(),
            _ => {
                pax.sparse |= key.starts_with(b"GNU.sparse.");
                false
            }
        };
        if repeated {
            return Err(BadHeader("a PAX record is repeated"));
        }
        data = &data[length..];
    }
    Ok(pax)
}

fn number(digits: &[u8]) -> Option<u64> {
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    all_digits
        .then(|| std::str::from_utf8(digits).ok()?.parse().ok())
        .flatten()
}

/// `size` rounded up to whole blocks; none beyond what a file can hold.
pub(crate) const fn padded(size: u64) -> Option<u64> {
    size.checked_next_multiple_of(BLOCK as u64)
}
