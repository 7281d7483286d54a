//! Schedules: their grammar, `[Rn/][start/]duration`, and when their slots fall. Pure.
//!
//! Grammar and rules: the schedules of Pulp 2 (ISO 8601 repeating intervals). A slot is always counted from the
//! start, `start + n × period`, never from the slot before it: a schedule of the 31st falls on the last day of a
//! short month and on the 31st again after it. All of it is UTC, so no slot moves with daylight saving time.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Months, NaiveDateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// One schedule: the 24 hexadecimal digits that Pulp 2 clients know.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ScheduleId(String);

impl ScheduleId {
    /// A new one.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string()[..24].to_owned())
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ScheduleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ScheduleId {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if text.len() == 24 && hex {
            Ok(Self(text.to_owned()))
        } else {
            Err(ScheduleError::Id)
        }
    }
}

/// What is wrong with a schedule's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Not an id.
    #[error("a schedule's id is 24 hexadecimal digits")]
    Id,
    /// No duration.
    #[error("it has no duration; write [Rn/][start/]duration, for example P1D or R5/2012-12-16T00:00Z/P1D")]
    NoDuration,
    /// A part that may come once comes twice.
    #[error("it has two {0}; one is enough")]
    Twice(&'static str),
    /// A part that is nothing.
    #[error("{0:?} is no recurrence (R5), no start (2012-12-16T00:00Z) and no duration (P1D, PT30M)")]
    Part(String),
    /// `R0`, a negative or an absurd recurrence.
    #[error("{0:?} is no number of runs; give R1 or more, or leave it away for ever")]
    Runs(String),
    /// A duration that is none, or can't be taken.
    #[error("{text:?} is no duration that can be repeated: {why}")]
    Duration {
        /// As given.
        text: String,
        /// Why.
        why: &'static str,
    },
    /// Months without a start.
    #[error("months and years differ in length, so they need a start, for example 2012-01-31T00:00Z/P1M")]
    MonthsNeedStart,
}

/// The time between two slots: a number of calendar months and a fixed time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// Calendar months; a year has 12.
    pub months: u32,
    /// Microseconds; a week has 7 days, a day 24 hours.
    pub micros: i64,
}

/// A schedule's text, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recurrence {
    /// How many runs; none means for ever.
    pub runs: Option<i64>,
    /// When the first slot is; none means when the schedule is made.
    pub start: Option<Timestamp>,
    /// Between two slots.
    pub period: Period,
}

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

/// The shortest period. Schedulers look once a second, so a shorter one could not be kept.
const SHORTEST: i64 = SECOND;

/// The longest: beyond that nobody sees the second slot.
const LONGEST_MONTHS: u32 = 12 * 1000;
const LONGEST_MICROS: i64 = 366_000 * DAY;

impl FromStr for Recurrence {
    type Err = ScheduleError;

    /// Reads the parts in any order, separated by `/` or `--`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (mut runs, mut start, mut period) = (None, None, None);
        for part in text.split('/').flat_map(|p| p.split("--")) {
            if part.starts_with('R') {
                once(&mut runs, "recurrences", read_runs(part)?)?;
            } else if part.starts_with('P') {
                once(&mut period, "durations", read_period(part)?)?;
            } else if part.starts_with("-P") || part.starts_with("+P") {
                return Err(wrong(part, "it has a sign"));
            } else {
                let at = read_instant(part).ok_or_else(|| ScheduleError::Part(part.to_owned()))?;
                once(&mut start, "starts", at)?;
            }
        }
        let period = period.ok_or(ScheduleError::NoDuration)?;
        if period.months > 0 && start.is_none() {
            return Err(ScheduleError::MonthsNeedStart);
        }
        Ok(Self { runs, start, period })
    }
}

fn once<T>(place: &mut Option<T>, name: &'static str, value: T) -> Result<(), ScheduleError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(ScheduleError::Twice(name)),
    }
}

fn wrong(text: &str, why: &'static str) -> ScheduleError {
    ScheduleError::Duration {
        text: text.to_owned(),
        why,
    }
}

/// `R5`.
fn read_runs(text: &str) -> Result<i64, ScheduleError> {
    let digits = text.strip_prefix('R').filter(|d| is_digits(d));
    let number = digits.and_then(|d| d.parse::<u32>().ok()).filter(|n| *n > 0);
    number
        .map(i64::from)
        .ok_or_else(|| ScheduleError::Runs(text.to_owned()))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// `P1Y2M3W4DT5H6M7.5S`: each part at most once, in this order. Fractions are taken of what has a fixed length.
fn read_period(text: &str) -> Result<Period, ScheduleError> {
    let body = text.strip_prefix('P').unwrap_or(text);
    let (date, time) = match body.split_once('T') {
        Some((date, time)) => (date, time),
        None => (body, ""),
    };
    if body.is_empty() {
        return Err(wrong(text, "nothing follows the P"));
    }
    let too_long = || wrong(text, "it is longer than a thousand years");
    let no_form = || wrong(text, "it is not of the form P1Y2M3W4DT5H6M7S");
    let mut months: u64 = 0;
    let mut micros: i128 = 0;
    let parts: [(&str, &[(char, i64)]); 2] = [
        (date, &[('Y', 0), ('M', 0), ('W', 7 * DAY), ('D', DAY)]),
        (time, &[('H', 3600 * SECOND), ('M', 60 * SECOND), ('S', SECOND)]),
    ];
    for (mut rest, units) in parts {
        let mut units = units.iter();
        while !rest.is_empty() {
            let end = rest.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(no_form)?;
            let (number, tail) = rest.split_at(end);
            let mut tail = tail.chars();
            let letter = tail.next().ok_or_else(no_form)?;
            rest = tail.as_str();
            let (_, size) = units.find(|(unit, _)| *unit == letter).ok_or_else(no_form)?;
            let (whole, fraction) = number.split_once(['.', ',']).unwrap_or((number, "0"));
            if !is_digits(whole) || !is_digits(fraction) {
                return Err(no_form());
            }
            let whole: u32 = whole.parse().map_err(|_| too_long())?;
            if *size > 0 {
                micros += i128::from(whole) * i128::from(*size) + fraction_of(fraction, *size);
            } else if fraction.bytes().all(|b| b == b'0') {
                months += u64::from(whole) * if letter == 'Y' { 12 } else { 1 };
            } else {
                return Err(wrong(text, "a fraction of a month or year has no length"));
            }
        }
    }
    let months = u32::try_from(months).ok().filter(|m| *m <= LONGEST_MONTHS);
    let micros = i64::try_from(micros).ok().filter(|m| *m <= LONGEST_MICROS);
    let (Some(months), Some(micros)) = (months, micros) else {
        return Err(too_long());
    };
    if months == 0 && micros < SHORTEST {
        return Err(wrong(text, "it is shorter than a second"));
    }
    Ok(Period { months, micros })
}

/// `0.<digits>` of `size`, to the microsecond. What lies beyond twelve digits is less than one.
fn fraction_of(digits: &str, size: i64) -> i128 {
    let digits = &digits[..digits.len().min(12)];
    let scale = 10_i128.pow(digits.len() as u32);
    digits.parse::<i128>().unwrap_or(0) * i128::from(size) / scale
}

/// An instant of ISO 8601: date and time, extended or basic, with `Z`, an offset, or neither, which is taken as
/// UTC here (Pulp 2: the server's own zone).
fn read_instant(text: &str) -> Option<Timestamp> {
    let (date, time) = text.split_once('T')?;
    let (time, offset) = if let Some(time) = time.strip_suffix('Z') {
        (time, 0)
    } else if let Some(at) = time.find(['+', '-']) {
        let (time, offset) = time.split_at_checked(at)?;
        (time, read_offset(offset)?)
    } else {
        (time, 0)
    };
    let (clock, fraction) = time.split_once(['.', ',']).unwrap_or((time, "0"));
    let digits = |text: &str| {
        text.bytes()
            .map(|b| if b.is_ascii_digit() { '0' } else { b as char })
            .collect::<String>()
    };
    let date_format = match digits(date).as_str() {
        "0000-00-00" => "%Y-%m-%d",
        "00000000" => "%Y%m%d",
        _ => return None,
    };
    let (clock, clock_format) = match digits(clock).as_str() {
        "00:00:00" => (clock.to_owned(), "%H:%M:%S"),
        "000000" => (clock.to_owned(), "%H%M%S"),
        "00:00" => (format!("{clock}:00"), "%H:%M:%S"),
        "0000" => (format!("{clock}00"), "%H%M%S"),
        "00" => (format!("{clock}0000"), "%H%M%S"),
        _ => return None,
    };
    if !is_digits(fraction) || (fraction != "0" && clock.len() != time.len() - fraction.len() - 1) {
        return None;
    }
    let format = format!("{date_format}T{clock_format}");
    let naive = NaiveDateTime::parse_from_str(&format!("{date}T{clock}"), &format).ok()?;
    let micros = naive.and_utc().timestamp_micros() + fraction_of(fraction, SECOND) as i64;
    Some(Timestamp(micros - offset))
}

/// `+01:00`, `+0100` or `+01`, in microseconds.
fn read_offset(text: &str) -> Option<i64> {
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let digits = match (rest.len(), rest.split_once(':')) {
        (5, Some((hours, minutes))) if hours.len() == 2 => format!("{hours}{minutes}"),
        (4, None) => rest.to_owned(),
        (2, None) => format!("{rest}00"),
        _ => return None,
    };
    if !is_digits(&digits) {
        return None;
    }
    let (hours, minutes) = digits.split_at_checked(2)?;
    let (hours, minutes): (i64, i64) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60) * SECOND)
}

/// The slots of a schedule whose first slot is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// The first slot.
    pub first: Timestamp,
    /// Between two slots.
    pub period: Period,
}

impl Slots {
    /// Slot `n`, counted from 0: `first + n × period`, the months before the rest. None beyond the calendar's end.
    pub fn at(&self, n: u64) -> Option<Timestamp> {
        let months = n.checked_mul(u64::from(self.period.months))?;
        let begin = if months == 0 {
            self.first
        } else {
            let months = Months::new(u32::try_from(months).ok()?);
            let first: DateTime<Utc> = DateTime::from_timestamp_micros(self.first.micros())?;
            Timestamp(first.checked_add_months(months)?.timestamp_micros())
        };
        let micros = i128::from(self.period.micros) * i128::from(n) + i128::from(begin.micros());
        let at = i64::try_from(micros).ok()?;
        DateTime::from_timestamp_micros(at)?;
        Some(Timestamp(at))
    }

    /// How many slots there have been up to and including `now`.
    fn count_until(&self, now: Timestamp) -> u64 {
        let elapsed = i128::from(now.micros()) - i128::from(self.first.micros());
        if elapsed < 0 {
            return 0;
        }
        // No month is shorter than 28 days; the slots in between are found by halving.
        let shortest = i128::from(self.period.micros) + i128::from(self.period.months) * i128::from(28 * DAY);
        let (mut low, mut high) = (
            1,
            u64::try_from(elapsed / shortest.max(1)).unwrap_or(u64::MAX - 2) + 2,
        );
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.at(middle - 1).is_some_and(|at| at <= now) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }

    /// The latest slot up to and including `now`; none before the first.
    pub fn latest(&self, now: Timestamp) -> Option<Timestamp> {
        self.at(self.count_until(now).checked_sub(1)?)
    }

    /// The first slot after `now`; none beyond the calendar's end.
    pub fn after(&self, now: Timestamp) -> Option<Timestamp> {
        self.at(self.count_until(now))
    }

    /// The slot that is to be fired now, if there is one: the latest, unless it or a later one was fired. Those
    /// missed before it collapse into it.
    pub fn due(&self, fired: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        self.latest(now).filter(|slot| fired.is_none_or(|f| f < *slot))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        read_instant(text).unwrap()
    }

    fn read(text: &str) -> Recurrence {
        text.parse().unwrap()
    }

    fn fault(text: &str) -> ScheduleError {
        text.parse::<Recurrence>().unwrap_err()
    }

    fn slots(text: &str) -> Slots {
        let read = read(text);
        Slots {
            first: read.start.unwrap(),
            period: read.period,
        }
    }

    #[test]
    fn the_examples_of_the_original_are_read() {
        let hour = Period {
            months: 0,
            micros: 3600 * SECOND,
        };
        assert_eq!(
            read("PT1H"),
            Recurrence {
                runs: None,
                start: None,
                period: hour
            }
        );
        let full = read("R5/2012-12-16T00:00Z/P1D");
        assert_eq!(
            (full.runs, full.start),
            (Some(5), Some(at("2012-12-16T00:00:00Z")))
        );
        assert_eq!(
            full.period,
            Period {
                months: 0,
                micros: DAY
            }
        );
        assert_eq!(
            read("2012-01-01T00:00Z/P1M").period,
            Period { months: 1, micros: 0 }
        );
        assert_eq!(read("P1DT").period.micros, DAY);
        assert_eq!(read("P1W").period.micros, 7 * DAY);
        assert_eq!(read("PT1.5S").period.micros, 1_500_000);
        assert_eq!(read("P0,5DT1M").period.micros, DAY / 2 + 60 * SECOND);
        let all = read("2012-01-01T00:00Z/P1Y2M3W4DT5H6M7S").period;
        assert_eq!(
            (all.months, all.micros),
            (14, 25 * DAY + (5 * 3600 + 6 * 60 + 7) * SECOND)
        );
    }

    #[test]
    fn parts_come_in_any_order_and_with_either_separator() {
        let one = read("R5/2012-12-16T00:00Z/P1D");
        for text in [
            "P1D/R5/2012-12-16T00:00Z",
            "2012-12-16T00:00Z--P1D--R5",
            "R5--2012-12-16T00:00Z/P1D",
        ] {
            assert_eq!(read(text), one, "{text}");
        }
    }

    #[test]
    fn starts_are_read_with_zone_offset_or_as_utc() {
        let noon = at("2012-12-16T12:00:00Z");
        for text in [
            "2012-12-16T12:00Z",
            "2012-12-16T12:00:00",
            "20121216T120000Z",
            "20121216T1200",
            "2012-12-16T12Z",
            "2012-12-16T13:00+01:00",
            "2012-12-16T13:00+0100",
            "2012-12-16T07:00:00-05",
            "2012-12-16T12:00:00.000Z",
        ] {
            assert_eq!(at(text), noon, "{text}");
        }
        assert_eq!(at("2012-12-16T12:00:00.25Z"), noon.plus_micros(250_000));
        for text in [
            "2012-12-16",
            "2012-13-01T00:00Z",
            "2012-2-01T00:00Z",
            "2012-02-30T00:00Z",
            "T",
            "2012-12-16T12:00.5Z",
            "2012-12-16T12:00+25:00",
            "2012-12-16T12:00+é",
            "é2012T00:00",
            "2012-12-16T12:00:00.Z",
        ] {
            assert_eq!(read_instant(text), None, "{text}");
        }
    }

    #[test]
    fn what_can_not_be_repeated_is_refused() {
        assert_eq!(fault("P1M"), ScheduleError::MonthsNeedStart);
        assert_eq!(fault("R2/P1Y"), ScheduleError::MonthsNeedStart);
        assert_eq!(fault("R5"), ScheduleError::NoDuration);
        assert_eq!(
            fault("2012-12-16T00:00Z/2013-12-16T00:00Z"),
            ScheduleError::Twice("starts")
        );
        assert_eq!(fault("P1D/P1D"), ScheduleError::Twice("durations"));
        assert_eq!(fault("R1/R2/P1D"), ScheduleError::Twice("recurrences"));
        for text in ["R0/P1D", "R-1/P1D", "R/P1D", "R1.5/P1D", "R99999999999/P1D"] {
            assert!(matches!(fault(text), ScheduleError::Runs(_)), "{text}");
        }
        for text in [
            "P",
            "PT",
            "P0D",
            "PT0.5S",
            "-P1D",
            "P1",
            "P1S",
            "PT1D",
            "P1D1D",
            "PT1S1M",
            "P-1D",
            "P1.5M",
            "PD",
            "P99999999999D",
            "P99999Y",
            "PT1.S",
            "P1d",
        ] {
            assert!(matches!(fault(text), ScheduleError::Duration { .. }), "{text}");
        }
        for text in ["", "tomorrow", "P1D/", "/P1D", "1D", "P1D /R1"] {
            assert!(text.parse::<Recurrence>().is_err(), "{text}");
        }
    }

    #[test]
    fn slots_are_counted_from_the_start_so_that_month_ends_do_not_drift() {
        let monthly = slots("2024-01-31T10:00Z/P1M");
        for (n, day) in [
            (1, "2024-02-29"),
            (2, "2024-03-31"),
            (3, "2024-04-30"),
            (13, "2025-02-28"),
            (14, "2025-03-31"),
        ] {
            assert_eq!(monthly.at(n), Some(at(&format!("{day}T10:00Z"))));
        }
        let leap = slots("2024-02-29T00:00Z/P1Y");
        assert_eq!(leap.at(1), Some(at("2025-02-28T00:00Z")));
        assert_eq!(leap.at(4), Some(at("2028-02-29T00:00Z")));
        // Months first, then the fixed rest, each times n.
        let both = slots("2026-01-31T00:00Z/P1M2DT3H");
        assert_eq!(both.at(1), Some(at("2026-03-02T03:00Z")));
        assert_eq!(both.at(2), Some(at("2026-04-04T06:00Z")));
    }

    #[test]
    fn missed_slots_collapse_into_the_latest() {
        let daily = slots("2024-01-01T00:00Z/P1D");
        assert_eq!(daily.due(None, at("2023-12-31T23:59Z")), None);
        assert_eq!(
            daily.due(None, at("2024-01-01T00:00Z")),
            Some(at("2024-01-01T00:00Z"))
        );
        let fired = Some(at("2024-01-01T00:00Z"));
        assert_eq!(daily.due(fired, at("2024-01-01T23:59Z")), None);
        assert_eq!(
            daily.due(fired, at("2024-01-09T12:00Z")),
            Some(at("2024-01-09T00:00Z"))
        );
        assert_eq!(
            daily.after(at("2024-01-09T12:00Z")),
            Some(at("2024-01-10T00:00Z"))
        );
        assert_eq!(
            daily.after(at("2023-06-01T00:00Z")),
            Some(at("2024-01-01T00:00Z"))
        );
    }

    #[test]
    fn the_calendar_has_an_end() {
        let far = slots("9999-01-01T00:00Z/P1000Y");
        assert_eq!(far.at(u64::MAX), None);
        assert_eq!(
            far.latest(Timestamp(i64::MAX)),
            far.at(far.count_until(Timestamp(i64::MAX)) - 1)
        );
        let quick = slots("0001-01-01T00:00Z/PT1S");
        assert!(quick.after(at("9999-12-31T23:59Z")).is_some());
    }

    /// Days of a month, by the rule of the Gregorian calendar.
    fn days_in(year: i64, month: i64) -> i64 {
        match month {
            2 if (year % 4 == 0 && year % 100 != 0) || year % 400 == 0 => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }

    /// Days since 1970, counted by years and months one after the other.
    fn day_number(year: i64, month: i64, day: i64) -> i64 {
        let of_years: i64 = (1970..year).map(|y| 337 + days_in(y, 2)).sum();
        let of_months: i64 = (1..month).map(|m| days_in(year, m)).sum();
        of_years + of_months + day - 1
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn slots_agree_with_a_calendar_counted_by_hand(
            year in 1970_i64..2100, month in 1_i64..=12, day in 1_i64..=31, second in 0_i64..86_400,
            months in 0_u32..40, rest in 0_i64..100_000_000, n in 0_u64..400,
        ) {
            let day = day.min(days_in(year, month));
            let first = Timestamp((day_number(year, month, day) * 86_400 + second) * SECOND);
            let period = Period { months, micros: (rest + i64::from(months == 0)) * SECOND };
            let slots = Slots { first, period };
            let at = month - 1 + n as i64 * i64::from(months);
            let (y, m) = (year + at / 12, at % 12 + 1);
            let expected = (day_number(y, m, day.min(days_in(y, m))) * 86_400 + second) * SECOND + n as i64 * period.micros;
            prop_assert_eq!(slots.at(n), Some(Timestamp(expected)));
        }

        #[test]
        fn the_latest_slot_and_the_next_enclose_now(
            first in 0_i64..4_000_000_000, months in 0_u32..30, rest in 0_i64..10_000_000, later in -1000_i64..20_000_000_000,
        ) {
            let slots = Slots {
                first: Timestamp(first * SECOND),
                period: Period { months, micros: (rest + i64::from(months == 0)) * SECOND },
            };
            let now = slots.first.plus_micros(later * SECOND);
            let next = slots.after(now).unwrap();
            prop_assert!(next > now);
            match slots.latest(now) {
                None => prop_assert!(later < 0 && next == slots.first),
                Some(latest) => {
                    let n = slots.count_until(now);
                    prop_assert!(latest <= now);
                    prop_assert_eq!(slots.at(n - 1), Some(latest));
                    prop_assert_eq!(slots.at(n), Some(next));
                    prop_assert_eq!(slots.due(Some(latest), now), None);
                }
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "[RPT0-9YMWDHS./:+Zé-]{0,30}|\\PC{0,20}") {
            let _ = text.parse::<Recurrence>();
        }
    }
}
