//! A hundred thousand random recurrences against a calendar that is walked day by day, with no arithmetic in common.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;

use chrono::{DateTime, Datelike as _, Days, NaiveDate, NaiveDateTime, TimeDelta, Utc};
use pulp_model::{
    Timestamp,
    schedule::{Recurrence, Slots},
};

/// A sequence that is the same everywhere (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    }
}

/// The first day of the month after that of `day`, found by going on day by day.
fn next_month(day: NaiveDate) -> NaiveDate {
    let days = day.iter_days().skip(1);
    days.into_iter().find(|d| d.month() != day.month()).unwrap()
}

/// The day of `first` so many months later, one month after the other; the month's last day if it has no such day.
fn months_later(first: NaiveDate, months: u64) -> NaiveDate {
    let mut month = first.with_day(1).unwrap();
    for _ in 0..months {
        month = next_month(month);
    }
    let days = month.iter_days().take_while(|d| d.month() == month.month());
    days.take(first.day() as usize).last().unwrap()
}

/// A recurrence as it was drawn, in words and in numbers.
struct Drawn {
    text: String,
    first: NaiveDateTime,
    months: u64,
    days: u64,
    seconds: i64,
}

fn draw(random: &mut Random) -> Drawn {
    let day = NaiveDate::from_ymd_opt(1990, 1, 1).unwrap() + Days::new(random.next(40_000));
    // Month ends and leap days often.
    let day = if random.next(3) == 0 {
        next_month(day).pred_opt().unwrap()
    } else {
        day
    };
    let first = day.and_hms_opt(0, 0, 0).unwrap() + TimeDelta::seconds(random.next(86_400) as i64);
    let (mut date, mut time) = (String::new(), String::new());
    let part = |random: &mut Random, text: &mut String, letter: char, most: u64| {
        let n = if random.next(3) == 0 { random.next(most) } else { 0 };
        if n > 0 {
            let _ = write!(text, "{n}{letter}");
        }
        n
    };
    let years = part(random, &mut date, 'Y', 4);
    let months = part(random, &mut date, 'M', 20);
    let weeks = part(random, &mut date, 'W', 6);
    let days = part(random, &mut date, 'D', 40);
    let hours = part(random, &mut time, 'H', 50);
    let minutes = part(random, &mut time, 'M', 100);
    let mut seconds = part(random, &mut time, 'S', 100);
    if date.is_empty() && time.is_empty() {
        time.push_str("1S");
        seconds = 1;
    }
    let mark = if time.is_empty() { "" } else { "T" };
    let runs = 1 + random.next(9);
    Drawn {
        text: format!(
            "R{runs}/{}Z/P{date}{mark}{time}",
            first.format("%Y-%m-%dT%H:%M:%S")
        ),
        first,
        months: 12 * years + months,
        days: 7 * weeks + days,
        seconds: (hours * 3600 + minutes * 60 + seconds) as i64,
    }
}

impl Drawn {
    fn slot(&self, n: u64) -> Timestamp {
        let day = months_later(self.first.date(), n * self.months) + Days::new(n * self.days);
        let at = day.and_time(self.first.time()) + TimeDelta::seconds(self.seconds * n as i64);
        Timestamp(DateTime::<Utc>::from_naive_utc_and_offset(at, Utc).timestamp_micros())
    }
}

#[test]
fn a_hundred_thousand_random_recurrences_agree_with_a_calendar_walked_day_by_day() {
    let seed = 20_121_216;
    let mut random = Random(seed);
    let mut slots_compared = 0;
    for round in 0..100_000 {
        let drawn = draw(&mut random);
        let context = format!("round {round} of seed {seed}: {}", drawn.text);
        let read: Recurrence = drawn.text.parse().expect(&context);
        let slots = Slots {
            first: read.start.expect(&context),
            period: read.period,
        };
        // Walking is slow, so few slots of each, near and a little farther on.
        let n = random.next(if drawn.months > 0 { 4 } else { 1000 });
        let (this, next) = (drawn.slot(n), drawn.slot(n + 1));
        assert_eq!(slots.at(n), Some(this), "{context}, slot {n}");
        assert_eq!(slots.at(n + 1), Some(next), "{context}, slot {}", n + 1);
        // Whatever the moment between the two, one is due and the other is next.
        let between = this.plus_micros(random.next((next.micros() - this.micros()) as u64) as i64);
        assert_eq!(slots.due(None, between), Some(this), "{context}, at {between}");
        assert_eq!(slots.after(between), Some(next), "{context}, at {between}");
        assert_eq!(slots.due(Some(this), between), None, "{context}, at {between}");
        slots_compared += 2;
    }
    println!("100000 recurrences, {slots_compared} slots agree; seed {seed}");
}
