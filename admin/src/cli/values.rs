//! Values of options, read from their texts.

use pulp_model::{
    platform::{PlatformFilter, PlatformsMode},
    tag_filter::TagFilter,
    task::TaskState,
};
use serde_json::Value;

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("give true or false".to_owned()),
    }
}

/// A text; an empty one unsets.
#[allow(clippy::unnecessary_wraps)] // clap wants a Result
pub(super) fn text(text: &str) -> Result<Value, String> {
    Ok(if text.is_empty() {
        Value::Null
    } else {
        Value::from(text)
    })
}

pub(super) fn flag(text: &str) -> Result<Value, String> {
    if text.is_empty() {
        Ok(Value::Null)
    } else {
        boolean(text).map(Value::from)
    }
}

pub(super) fn positive(text: &str) -> Result<Value, String> {
    match text.parse::<u64>() {
        _ if text.is_empty() => Ok(Value::Null),
        Ok(number) if number > 0 => Ok(Value::from(number)),
        _ => Err("give a whole number above 0".to_owned()),
    }
}

pub(super) fn port(text: &str) -> Result<Value, String> {
    match text.parse::<u16>() {
        _ if text.is_empty() => Ok(Value::Null),
        Ok(number) if number > 0 => Ok(Value::from(number)),
        _ => Err("give a port, 1 to 65535".to_owned()),
    }
}

pub(super) fn tag_list(text: &str) -> Result<Value, String> {
    if text.is_empty() || text == "None" {
        return Ok(Value::Null);
    }
    let tags: Vec<String> = text.split(',').map(|tag| tag.trim().to_owned()).collect();
    TagFilter::new(Some(&tags), &[], None, None).map_err(|faults| {
        faults
            .into_iter()
            .map(|(_, fault)| fault)
            .collect::<Vec<_>>()
            .join("; ")
    })?;
    Ok(Value::from(tags))
}

/// Platforms with commas between; empty or `None` means all.
pub(super) fn platform_list(text: &str) -> Result<Value, String> {
    if text.is_empty() || text == "None" {
        return Ok(Value::Null);
    }
    let platforms: Vec<String> = text.split(',').map(|p| p.trim().to_owned()).collect();
    PlatformFilter::new(&platforms).map_err(|faults| faults.join("; "))?;
    Ok(Value::from(platforms))
}

/// What becomes of indexes of which not all platforms are taken; empty means the default.
pub(super) fn platforms_mode(text: &str) -> Result<Value, String> {
    if text.is_empty() {
        return Ok(Value::Null);
    }
    text.parse::<PlatformsMode>().map(|_| Value::from(text))
}

/// `name:image`, split at the last colon.
pub(super) fn v1_tag(text: &str) -> Result<(String, String), String> {
    match text.rsplit_once(':') {
        Some((name, image)) if !name.is_empty() && !image.is_empty() => {
            Ok((name.to_owned(), image.to_owned()))
        }
        _ => Err(format!("Unable to parse {text:?}; give it as NAME:IMAGE")),
    }
}

/// The wire's states, and the words that people read for them.
pub(super) fn task_state(text: &str) -> Result<TaskState, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "successful" => Ok(TaskState::Finished),
        "failed" => Ok(TaskState::Error),
        "cancelled" => Ok(TaskState::Canceled),
        other => TaskState::parse(other).ok_or_else(|| {
            format!(
                "give some of {}",
                TaskState::ALL.map(TaskState::as_str).join(", ")
            )
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_value_unsets_whatever_its_type() {
        assert_eq!(
            [
                text(""),
                flag(""),
                positive(""),
                port(""),
                tag_list(""),
                tag_list("None")
            ],
            [const { Ok(Value::Null) }; 6]
        );
        assert!(flag("perhaps").is_err() && positive("0").is_err() && port("70000").is_err());
        assert_eq!(flag("TRUE"), Ok(Value::from(true)));
    }

    #[test]
    fn tags_may_be_patterns() {
        let tags = |text| tag_list(text).map(|v| v.as_array().map_or(0, Vec::len));
        assert_eq!(tags("latest, 1.*,re:v[0-9]+"), Ok(3));
        assert!(tag_list("a,-b").is_err() && tag_list("re:(").is_err());
    }

    #[test]
    fn platforms_are_checked_before_they_are_sent() {
        assert_eq!(
            platform_list("linux/amd64, linux/arm/v7"),
            Ok(Value::from(vec!["linux/amd64", "linux/arm/v7"]))
        );
        assert!(platform_list("linux/amd64,linux").is_err() && platform_list("linux/aarch64").is_err());
        assert_eq!(platform_list("None"), Ok(Value::Null));
        assert_eq!(platforms_mode("rewrite"), Ok(Value::from("rewrite")));
        assert_eq!(platforms_mode(""), Ok(Value::Null));
        assert!(platforms_mode("both").is_err());
    }

    #[test]
    fn a_v1_tag_is_split_at_its_last_colon() {
        assert_eq!(v1_tag("a:b:abcdef"), Ok(("a:b".to_owned(), "abcdef".to_owned())));
        assert!(v1_tag("latest").is_err() && v1_tag(":abc").is_err() && v1_tag("a:").is_err());
    }

    #[test]
    fn states_have_synonyms() {
        assert_eq!(task_state("Successful"), Ok(TaskState::Finished));
        assert_eq!(task_state("failed"), Ok(TaskState::Error));
        assert!(task_state("completed").is_err());
    }
}
