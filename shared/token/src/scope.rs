//! What clients ask for: `repository:<name>:<action>,<action>`, several divided by blanks.

use std::collections::BTreeSet;

use pulp_model::RegistryId;

/// Scopes looked at in one request; clients ask for one or two.
const SCOPES: usize = 64;

/// Names of the repositories that somebody wants to pull from.
///
/// What is not well-formed, and what is never given (`push`, catalogs, kinds of other registries), is left out: the
/// specification has the token say less than was asked, and not fail.
pub fn pulls_asked_for<'a>(scopes: impl IntoIterator<Item = &'a str>) -> BTreeSet<RegistryId> {
    let scopes = scopes.into_iter().flat_map(|text| text.split(' '));
    scopes
        .filter(|scope| !scope.is_empty())
        .take(SCOPES)
        .filter_map(pull_asked_for)
        .collect()
}

fn pull_asked_for(scope: &str) -> Option<RegistryId> {
    let (kind, rest) = scope.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    let pulls = actions.split(',').any(|action| action == "pull" || action == "*");
    // Names with a host and its port have a colon, and are none of ours.
    (kind == "repository" && pulls).then(|| name.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked(scopes: &[&str]) -> Vec<String> {
        pulls_asked_for(scopes.iter().copied())
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn scopes_come_one_by_one_or_divided_by_blanks() {
        let expected = ["a", "b/c", "d"];
        assert_eq!(
            asked(&["repository:a:pull repository:b/c:pull,push", "repository:d:*"]),
            expected
        );
        assert_eq!(asked(&["repository:a:pull", "repository:a:push,pull"]), ["a"]);
    }

    #[test]
    fn what_is_no_pull_of_a_repository_is_left_out() {
        for scope in [
            "",
            " ",
            "repository",
            "repository:a",
            "repository:a:",
            "repository:a:push",
            "repository:a:pulled",
            "repository:A:pull",
            "repository:../a:pull",
            "repository:a\"b:pull",
            "repository:host:5000/a:pull",
            "repository(plugin):a:pull",
            "Repository:a:pull",
            "registry:catalog:*",
            "repository::pull",
        ] {
            assert!(asked(&[scope]).is_empty(), "{scope:?}");
        }
    }

    #[test]
    fn no_more_scopes_are_looked_at_than_anybody_needs() {
        let many: Vec<String> = (0..10_000).map(|n| format!("repository:r{n}:pull")).collect();
        assert_eq!(asked(&[&many.join(" ")]).len(), SCOPES);
    }

    proptest! {
        #[test]
        fn whatever_is_asked_only_whole_names_come_out(text in ".{0,200}") {
            for name in pulls_asked_for([text.as_str()]) {
                prop_assert!(text.contains(&format!("repository:{name}:")), "{name}");
            }
        }
    }
}
