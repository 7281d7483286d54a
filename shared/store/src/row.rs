//! Reading columns into domain types; what doesn't fit is named.

use std::str::FromStr;

use pulp_model::Timestamp;
use pulp_trace::TraceContext;
use serde::de::DeserializeOwned;
use sqlx::{Row as _, any::AnyRow};

use crate::StoreError;

/// A text column parsed into its type.
pub(crate) fn parsed<T>(row: &AnyRow, column: &'static str) -> Result<T, StoreError>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.try_get(column)?;
    text.parse().map_err(|e| StoreError::corrupt(column, e))
}

/// A text column of JSON.
pub(crate) fn json<T: DeserializeOwned>(row: &AnyRow, column: &'static str) -> Result<T, StoreError> {
    let text: String = row.try_get(column)?;
    serde_json::from_str(&text).map_err(|e| StoreError::corrupt(column, e))
}

/// A text column of JSON that may be null.
pub(crate) fn optional_json<T: DeserializeOwned>(
    row: &AnyRow,
    column: &'static str,
) -> Result<Option<T>, StoreError> {
    let text: Option<String> = row.try_get(column)?;
    text.map(|t| serde_json::from_str(&t).map_err(|e| StoreError::corrupt(column, e)))
        .transpose()
}

/// An instant.
pub(crate) fn instant(row: &AnyRow, column: &'static str) -> Result<Timestamp, StoreError> {
    Ok(Timestamp(row.try_get(column)?))
}

/// An instant that may be null.
pub(crate) fn optional_instant(row: &AnyRow, column: &'static str) -> Result<Option<Timestamp>, StoreError> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(Timestamp))
}

/// The place in a trace; none if there is none.
pub(crate) fn trace(row: &AnyRow) -> Result<Option<TraceContext>, StoreError> {
    let (parent, state): (Option<String>, Option<String>) =
        (row.try_get("traceparent")?, row.try_get("tracestate")?);
    Ok(TraceContext::from_row(parent.as_deref(), state.as_deref()))
}

/// Any serialisable value as a text column.
pub(crate) fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}
