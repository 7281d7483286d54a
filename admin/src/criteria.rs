//! Search criteria from options, as Pulp's REST API takes them.

use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, Utc};
use clap::Args;
use serde_json::{Map, Value, json};

/// `field=value`.
pub(crate) type Pair = (String, String);

/// Options of every search.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Filters")]
pub(crate) struct CriteriaArgs {
    /// filters as JSON in Pulp's (MongoDB's) notation; the other filters are then ignored
    #[arg(long, value_name = "JSON", value_parser = json_object)]
    pub(crate) filters: Option<Value>,
    /// the field equals the text; may be repeated, all filters must match
    #[arg(long, value_name = "FIELD=TEXT", value_parser = pair)]
    pub(crate) str_eq: Vec<Pair>,
    /// the field equals the number
    #[arg(long, value_name = "FIELD=NUMBER", value_parser = int_pair)]
    pub(crate) int_eq: Vec<(String, i64)>,
    /// the field matches the regular expression
    #[arg(long = "match", value_name = "FIELD=REGEX", value_parser = pair)]
    pub(crate) matching: Vec<Pair>,
    /// the field is one of the values
    #[arg(long = "in", value_name = "FIELD=A,B", value_parser = pair)]
    pub(crate) one_of: Vec<Pair>,
    /// the field doesn't match the regular expression
    #[arg(long, value_name = "FIELD=REGEX", value_parser = pair)]
    pub(crate) not: Vec<Pair>,
    /// the field is greater
    #[arg(long, value_name = "FIELD=VALUE", value_parser = pair)]
    pub(crate) gt: Vec<Pair>,
    /// the field is greater or equal
    #[arg(long, value_name = "FIELD=VALUE", value_parser = pair)]
    pub(crate) gte: Vec<Pair>,
    /// the field is less
    #[arg(long, value_name = "FIELD=VALUE", value_parser = pair)]
    pub(crate) lt: Vec<Pair>,
    /// the field is less or equal
    #[arg(long, value_name = "FIELD=VALUE", value_parser = pair)]
    pub(crate) lte: Vec<Pair>,
    /// at most this many results
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// leave out this many results
    #[arg(long)]
    pub(crate) skip: Option<u64>,
    /// order of the results; may be repeated
    #[arg(long, value_name = "FIELD[,descending]", value_parser = sorting)]
    pub(crate) sort: Vec<(String, String)>,
    /// only these fields, separated by commas
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) fields: Vec<String>,
}

/// Options of a search among a repository's units.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct UnitCriteriaArgs {
    #[command(flatten)]
    pub(crate) criteria: CriteriaArgs,
    /// added to the repository at this time or later (ISO 8601)
    #[arg(short, long, value_name = "TIME", value_parser = instant, help_heading = "Filters")]
    pub(crate) after: Option<String>,
    /// added to the repository at this time or earlier (ISO 8601)
    #[arg(short, long, value_name = "TIME", value_parser = instant, help_heading = "Filters")]
    pub(crate) before: Option<String>,
}

impl CriteriaArgs {
    /// The filters, all of which must match.
    pub(crate) fn filters(&self) -> Value {
        if let Some(filters) = &self.filters {
            return filters.clone();
        }
        let mut clauses: Vec<Value> = Vec::new();
        clauses.extend(self.str_eq.iter().map(|(f, v)| json!({f: v})));
        clauses.extend(self.int_eq.iter().map(|(f, v)| json!({f: v})));
        clauses.extend(self.matching.iter().map(|(f, v)| json!({f: {"$regex": v}})));
        clauses.extend(
            self.one_of
                .iter()
                .map(|(f, v)| json!({f: {"$in": v.split(',').collect::<Vec<_>>()}})),
        );
        clauses.extend(self.not.iter().map(|(f, v)| json!({f: {"$not": v}})));
        for (operator, pairs) in [
            ("$gt", &self.gt),
            ("$gte", &self.gte),
            ("$lt", &self.lt),
            ("$lte", &self.lte),
        ] {
            clauses.extend(
                pairs
                    .iter()
                    .map(|(f, v)| json!({f: {operator: number_or_text(v)}})),
            );
        }
        match clauses.len() {
            0 => json!({}),
            1 => clauses.pop().unwrap_or_default(),
            _ => json!({"$and": clauses}),
        }
    }

    /// Plain criteria: filters, sort, limit, skip, fields.
    pub(crate) fn plain(&self) -> Map<String, Value> {
        let mut criteria = Map::from_iter([("filters".to_owned(), self.filters())]);
        self.page(&mut criteria);
        if !self.sort.is_empty() {
            criteria.insert("sort".to_owned(), json!(self.sort));
        }
        if !self.fields.is_empty() {
            criteria.insert("fields".to_owned(), json!(self.fields));
        }
        criteria
    }

    fn page(&self, criteria: &mut Map<String, Value>) {
        if let Some(limit) = self.limit {
            criteria.insert("limit".to_owned(), json!(limit));
        }
        if let Some(skip) = self.skip {
            criteria.insert("skip".to_owned(), json!(skip));
        }
    }
}

impl UnitCriteriaArgs {
    /// Unit-association criteria for one type. `needed` are fields that the caller reads in any case.
    pub(crate) fn associations(&self, type_id: &str, needed: &[&str]) -> Value {
        let mut association = Map::new();
        for (operator, time) in [("$gte", &self.after), ("$lte", &self.before)] {
            if let Some(time) = time {
                association.insert(operator.to_owned(), json!(time));
            }
        }
        let association = if association.is_empty() {
            json!({})
        } else {
            json!({"created": association})
        };
        let mut criteria = Map::from_iter([
            ("type_ids".to_owned(), json!([type_id])),
            (
                "filters".to_owned(),
                json!({"unit": self.criteria.filters(), "association": association}),
            ),
        ]);
        self.criteria.page(&mut criteria);
        if !self.criteria.sort.is_empty() {
            criteria.insert("sort".to_owned(), json!({"unit": self.criteria.sort}));
        }
        if !self.criteria.fields.is_empty() {
            let mut fields: Vec<&str> = self.criteria.fields.iter().map(String::as_str).collect();
            fields.extend(
                needed
                    .iter()
                    .filter(|needed| !self.criteria.fields.iter().any(|f| f == *needed)),
            );
            criteria.insert("fields".to_owned(), json!({"unit": fields}));
        }
        Value::Object(criteria)
    }
}

fn number_or_text(text: &str) -> Value {
    text.parse::<i64>()
        .map_or_else(|_| json!(text), |number| json!(number))
}

/// `field=value`; the value may hold further `=`.
pub(crate) fn pair(text: &str) -> Result<Pair, String> {
    match text.split_once('=') {
        Some((field, value)) if !field.trim().is_empty() => Ok((field.trim().to_owned(), value.to_owned())),
        _ => Err("give it as FIELD=VALUE".to_owned()),
    }
}

fn int_pair(text: &str) -> Result<(String, i64), String> {
    let (field, value) = pair(text)?;
    let number = value
        .parse()
        .map_err(|_| format!("{value:?} is no whole number"))?;
    Ok((field, number))
}

fn sorting(text: &str) -> Result<(String, String), String> {
    let (field, direction) = text.split_once(',').unwrap_or((text, "ascending"));
    match direction.trim() {
        "ascending" | "descending" if !field.trim().is_empty() => {
            Ok((field.trim().to_owned(), direction.trim().to_owned()))
        }
        _ => Err("give it as FIELD, FIELD,ascending or FIELD,descending".to_owned()),
    }
}

fn json_object(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("the JSON must be an object, for example {\"name\": \"latest\"}".to_owned()),
        Err(e) => Err(format!("no JSON: {e}")),
    }
}

/// A time as the server writes it, since it compares texts: `2015-01-02T20:39:58Z`. Without a zone it is UTC.
pub(crate) fn instant(text: &str) -> Result<String, String> {
    let utc = DateTime::parse_from_rfc3339(text)
        .map(|t| t.with_timezone(&Utc))
        .or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S").map(|t| t.and_utc()))
        .or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M").map(|t| t.and_utc()))
        .or_else(|_| {
            NaiveDate::parse_from_str(text, "%Y-%m-%d").map(|d| d.and_time(chrono::NaiveTime::MIN).and_utc())
        })
        .map_err(|_| "give a time like 2015-01-02T20:39:58Z or 2015-01-02".to_owned())?;
    Ok(utc.to_rfc3339_opts(SecondsFormat::Secs, true))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Search {
        #[command(flatten)]
        units: UnitCriteriaArgs,
    }

    fn parse(args: &[&str]) -> Result<UnitCriteriaArgs, clap::Error> {
        Search::try_parse_from(std::iter::once(&"search").chain(args)).map(|s| s.units)
    }

    fn units(args: &[&str]) -> Value {
        parse(args).unwrap().associations("docker_tag", &["name"])
    }

    #[test]
    fn without_options_everything_of_the_type_is_meant() {
        assert_eq!(
            units(&[]),
            json!({"type_ids": ["docker_tag"], "filters": {"unit": {}, "association": {}}})
        );
    }

    #[test]
    fn one_filter_stands_alone_and_several_are_joined_by_and() {
        assert_eq!(
            units(&["--str-eq=name=a=b"])["filters"]["unit"],
            json!({"name": "a=b"})
        );
        assert_eq!(
            units(&[
                "--match",
                "name=^1",
                "--int-eq=schema_version=2",
                "--in=x=a,b",
                "--not=y=z",
                "--gte=s=3"
            ])["filters"]["unit"],
            json!({"$and": [{"schema_version": 2}, {"name": {"$regex": "^1"}}, {"x": {"$in": ["a", "b"]}},
                {"y": {"$not": "z"}}, {"s": {"$gte": 3}}]})
        );
    }

    #[test]
    fn filters_given_as_json_override_the_others() {
        let args = ["--filters", r#"{"name":{"$exists":true}}"#, "--str-eq", "name=x"];
        assert_eq!(
            units(&args)["filters"]["unit"],
            json!({"name": {"$exists": true}})
        );
        assert!(parse(&["--filters", "[1]"]).is_err());
    }

    #[test]
    fn times_are_sent_in_utc_as_the_server_writes_them() {
        assert_eq!(
            units(&["--after=2015-01-02T22:00:00+02:00", "-b", "2016-01-01"])["filters"]["association"],
            json!({"created": {"$gte": "2015-01-02T20:00:00Z", "$lte": "2016-01-01T00:00:00Z"}})
        );
        assert!(parse(&["--after=yesterday"]).is_err());
    }

    #[test]
    fn page_order_and_fields_go_to_their_places() {
        let criteria = units(&[
            "--limit=5",
            "--skip=10",
            "--sort=name,descending",
            "--sort=x",
            "--fields=a,b",
        ]);
        assert_eq!(criteria["limit"], 5);
        assert_eq!(criteria["skip"], 10);
        assert_eq!(
            criteria["sort"],
            json!({"unit": [["name", "descending"], ["x", "ascending"]]})
        );
        assert_eq!(
            criteria["fields"],
            json!({"unit": ["a", "b", "name"]}),
            "what the caller reads is added"
        );
        assert!(parse(&["--limit=0"]).is_err());
        assert!(parse(&["--sort=name,upwards"]).is_err());
    }

    #[test]
    fn a_filter_without_a_value_is_refused() {
        for bad in ["--str-eq=name", "--str-eq==x", "--int-eq=a=b"] {
            assert!(parse(&[bad]).is_err(), "{bad}");
        }
    }
}
