//! Tags of a repository, sorted by name: the names in one text, each with the rows of what it names.

/// No row.
pub(super) const NONE: u32 = u32::MAX;

/// Rows of what a tag names in the table of manifests: schema 1, schema 2 or OCI, list.
pub(super) type Targets = [u32; 3];

/// All tags of a repository.
#[derive(Debug, Default)]
pub(crate) struct Tags {
    names: Box<str>,
    rows: Box<[Row]>,
}

#[derive(Debug)]
struct Row {
    /// Where the name ends in `names`; it begins where the one before ends.
    end: u32,
    targets: Targets,
}

impl Tags {
    /// Of names in order, each once. Names of more than four gigabytes are cut off.
    pub(super) fn new<'a>(tags: impl Iterator<Item = (&'a str, Targets)>) -> Self {
        let (mut names, mut rows) = (String::new(), Vec::new());
        for (name, targets) in tags {
            let Ok(end) = u32::try_from(names.len() + name.len()) else {
                break;
            };
            names.push_str(name);
            rows.push(Row { end, targets });
        }
        Self {
            names: names.into_boxed_str(),
            rows: rows.into_boxed_slice(),
        }
    }

    /// A name by its place among the sorted ones.
    pub(super) fn name(&self, row: usize) -> &str {
        let end = |row: usize| self.rows.get(row).and_then(|r| usize::try_from(r.end).ok());
        let begin = row.checked_sub(1).and_then(end).unwrap_or(0);
        end(row)
            .and_then(|end| self.names.get(begin..end))
            .unwrap_or_default()
    }

    /// What the name at a place among the sorted ones names.
    pub(super) fn targets(&self, row: usize) -> Option<Targets> {
        self.rows.get(row).map(|row| row.targets)
    }

    pub(super) fn find(&self, name: &str) -> Option<Targets> {
        self.targets(self.place(name)?)
    }

    /// The place of a name among the sorted ones.
    pub(super) fn place(&self, name: &str) -> Option<usize> {
        let (mut low, mut high) = (0, self.rows.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.name(middle).cmp(name) {
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The names in order, with what they name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, Targets)> {
        let rows = self.rows.iter().enumerate();
        rows.map(|(place, row)| (self.name(place), row.targets))
    }

    /// The names in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        (0..self.rows.len()).map(|row| self.name(row))
    }

    /// The last name.
    pub(crate) fn last(&self) -> Option<&str> {
        Some(self.name(self.rows.len().checked_sub(1)?))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_name_is_found_with_what_it_names(tags: BTreeMap<String, u32>, asked: String) {
            let made = Tags::new(tags.iter().map(|(name, n)| (name.as_str(), [*n, NONE, NONE])));
            prop_assert!(made.names().eq(tags.keys()));
            prop_assert_eq!(made.last(), tags.keys().next_back().map(String::as_str));
            for name in tags.keys().chain([&asked]) {
                prop_assert_eq!(made.find(name).map(|t| t[0]), tags.get(name).copied());
            }
        }
    }
}
