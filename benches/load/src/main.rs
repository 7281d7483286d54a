//! The load of `benches/tasks`: probes asked for over REST, on connections that are kept.
//!
//! What it prints is one line a task, `<task id> <microseconds since 1970 when it was asked for> <… answered>`, and for
//! `paced` also when a client saw it finished. It costs a few per cent of what it measures: requests are bytes made
//! once, answers are searched for the one thing that is wanted.

mod client;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use client::{Client, Target};
use tokio::task::JoinSet;

const USAGE: &str = "usage: pulp-load <address> <login> <password> <what>\n\n\
    setup <repositories> <connections>            makes r0, r1, …\n\
    burst <tasks> <repositories> <connections>    probes, as fast as they are taken\n\
    paced <tasks> <repositories>                  one at a time, each seen finished before the next is asked for\n\
    rate <a second> <seconds> <repositories> <connections>   probes at an even rate, whatever the answers";

/// How often a client that waits for a task looks.
const LOOK: Duration = Duration::from_millis(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (target, what) = match arguments.as_slice() {
        [address, login, password, what @ ..] => (Arc::new(Target::new(address, login, password)), what),
        _ => bail!("{USAGE}"),
    };
    let lines = match what {
        ["setup", count, connections] => {
            setup(&target, number(count)?, number(connections)?).await?;
            Vec::new()
        }
        ["burst", tasks, repositories, connections] => {
            let (tasks, repositories) = (number(tasks)?, number(repositories)?);
            burst(&target, tasks, repositories, number(connections)?).await?
        }
        ["paced", tasks, repositories] => paced(&target, number(tasks)?, number(repositories)?).await?,
        ["rate", rate, seconds, repositories, connections] => {
            let tasks = number(rate)? * number(seconds)?;
            let every = Duration::from_secs(1) / u32::try_from(number(rate)?)?;
            rate_of(&target, tasks, every, number(repositories)?, number(connections)?).await?
        }
        _ => bail!("{USAGE}"),
    };
    print!("{}", lines.concat());
    Ok(())
}

fn number(text: &str) -> Result<usize> {
    text.parse().with_context(|| format!("{text} is no number"))
}

fn now_micros() -> u128 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_micros())
}

fn probe_path(n: usize, repositories: usize) -> String {
    format!("/repositories/r{}/actions/probe/", n % repositories)
}

async fn setup(target: &Arc<Target>, count: usize, connections: usize) -> Result<()> {
    each(target, count, connections, |n| {
        ("/repositories/".to_owned(), format!(r#"{{"id": "r{n}"}}"#), 201)
    })
    .await?;
    Ok(())
}

async fn burst(
    target: &Arc<Target>,
    tasks: usize,
    repositories: usize,
    connections: usize,
) -> Result<Vec<String>> {
    each(target, tasks, connections, move |n| {
        (probe_path(n, repositories), "{}".to_owned(), 202)
    })
    .await
}

/// `count` POSTs over `connections`, each as soon as the one before it on its connection is answered.
async fn each<F>(target: &Arc<Target>, count: usize, connections: usize, request: F) -> Result<Vec<String>>
where
    F: Fn(usize) -> (String, String, u16) + Send + Sync + 'static,
{
    let (next, request) = (Arc::new(AtomicUsize::new(0)), Arc::new(request));
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        let mut client = Client::connect(target).await?;
        let (next, request) = (Arc::clone(&next), Arc::clone(&request));
        workers.spawn(async move {
            let mut lines = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return anyhow::Ok(lines);
                }
                let (path, body, wanted) = request(n);
                lines.push(asked(&mut client, &path, &body, wanted).await?);
            }
        });
    }
    let mut lines = Vec::with_capacity(count);
    while let Some(done) = workers.join_next().await {
        lines.extend(done??);
    }
    Ok(lines)
}

/// One POST and its line.
async fn asked(client: &mut Client, path: &str, body: &str, wanted: u16) -> Result<String> {
    let begun = now_micros();
    let (status, answer) = client.post(path, body).await?;
    ensure!(status == wanted, "{path}: {status} {answer}");
    Ok(format!(
        "{} {begun} {}\n",
        task_id(answer).unwrap_or("-"),
        now_micros()
    ))
}

/// The id of the task in a call report.
fn task_id(answer: &str) -> Option<&str> {
    let (_, rest) = answer.split_once("\"task_id\":\"")?;
    rest.split_once('"').map(|(id, _)| id)
}

async fn paced(target: &Arc<Target>, tasks: usize, repositories: usize) -> Result<Vec<String>> {
    let mut client = Client::connect(target).await?;
    let mut lines = Vec::with_capacity(tasks);
    for n in 0..tasks {
        let line = asked(&mut client, &probe_path(n, repositories), "{}", 202).await?;
        let id = line.split(' ').next().unwrap_or_default().to_owned();
        let give_up = Instant::now() + Duration::from_mins(1);
        loop {
            let (status, answer) = client.get(&format!("/tasks/{id}/")).await?;
            ensure!(status == 200, "{status} {answer}");
            if answer.contains(r#""state":"finished""#) {
                break;
            }
            ensure!(Instant::now() < give_up, "no end of {answer}");
            tokio::time::sleep(LOOK).await;
        }
        lines.push(format!("{} {}\n", line.trim_end(), now_micros()));
    }
    Ok(lines)
}

/// Each POST at its own instant, on whichever connection is free; it is late if none is.
async fn rate_of(
    target: &Arc<Target>,
    tasks: usize,
    every: Duration,
    repositories: usize,
    connections: usize,
) -> Result<Vec<String>> {
    let begun = tokio::time::Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        let mut client = Client::connect(target).await?;
        let next = Arc::clone(&next);
        workers.spawn(async move {
            let mut lines = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= tasks {
                    return anyhow::Ok(lines);
                }
                tokio::time::sleep_until(begun + every * u32::try_from(n)?).await;
                lines.push(asked(&mut client, &probe_path(n, repositories), "{}", 202).await?);
            }
        });
    }
    let mut lines = Vec::with_capacity(tasks);
    while let Some(done) = workers.join_next().await {
        lines.extend(done??);
    }
    Ok(lines)
}
