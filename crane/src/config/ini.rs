//! INI files as Python's `ConfigParser` reads them, which `/etc/crane.conf` is written for.

use std::collections::BTreeMap;

/// A value and the line it is on.
pub(super) type Value = (String, usize);

/// Values by section and key. Sections are as written, keys in lower case.
pub(super) type Sections = BTreeMap<String, BTreeMap<String, Value>>;

/// A line that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IniError {
    /// A setting before the first section.
    #[error("line {0}: a setting before the first [section]")]
    NoSection(usize),
    /// Neither a section, nor a setting, nor a comment.
    #[error("line {0}: neither [section] nor key: value")]
    NotASetting(usize),
}

/// Reads a file. A key given twice has the later value; a line that begins with a blank goes on with the one before.
pub(super) fn parse(text: &str) -> Result<Sections, IniError> {
    let mut sections = Sections::new();
    let mut section: Option<String> = None;
    let mut last: Option<(String, String)> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let trimmed = line.trim();
        if trimmed.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let (true, Some((section, key))) = (line.starts_with([' ', '\t']), &last) {
            let value = sections.get_mut(section).and_then(|s| s.get_mut(key));
            if let Some((value, _)) = value {
                value.push('\n');
                value.push_str(trimmed);
            }
            continue;
        }
        if let Some(name) = trimmed.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            sections.entry(name.to_owned()).or_default();
            section = Some(name.to_owned());
            last = None;
            continue;
        }
        let section = section.clone().ok_or(IniError::NoSection(number))?;
        let (key, value) = trimmed
            .split_once([':', '='])
            .ok_or(IniError::NotASetting(number))?;
        let key = key.trim().to_lowercase();
        // A comment behind a value needs a blank before it.
        let value = [" ;", "\t;"]
            .iter()
            .fold(value, |v, mark| v.split(mark).next().unwrap_or(v));
        let values = sections.entry(section.clone()).or_default();
        values.insert(key.clone(), (value.trim().to_owned(), number));
        last = Some((section, key));
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn value(text: &str) -> String {
        parse(text).unwrap()["general"]["data_dir"].0.clone()
    }

    #[test]
    fn both_separators_comments_and_keys_of_any_case_are_read() {
        for text in [
            "[general]\ndata_dir: /srv",
            "[general]\ndata_dir = /srv\n",
            "# c\n; c\n[general]\nDATA_DIR:/srv ; where it is",
            "[general]\ndata_dir: /other\n[cdn]\n[general]\ndata_dir: /srv",
        ] {
            assert_eq!(value(text), "/srv", "{text}");
        }
        assert_eq!(value("[general]\ndata_dir: a;b%%"), "a;b%%");
        assert_eq!(value("[general]\ndata_dir: a\n  b"), "a\nb");
    }

    #[test]
    fn what_is_no_setting_is_told_with_its_line() {
        assert_eq!(parse("\ndebug: true"), Err(IniError::NoSection(2)));
        assert_eq!(parse("[general]\ndebug"), Err(IniError::NotASetting(2)));
        assert_eq!(parse(""), Ok(Sections::new()));
    }
}
