//! How roles start and refuse to: on a database that is not migrated, on a broker that nobody shares.

use std::process::{Command, Output};

use anyhow::Result;
use pulp_tests::binary;
use tempfile::TempDir;

const ROLES: [&str; 4] = ["api", "resource-manager", "worker", "scheduler"];

/// A configuration of a fresh database and some broker.
fn configuration(database_url: &str, broker_url: &str) -> Result<(TempDir, String)> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("pulp.toml");
    std::fs::write(
        &file,
        format!(
            "[database]\nurl = \"{database_url}\"\n[broker]\nurl = \"{broker_url}\"\nprefix = \"roles\"\n\
             [storage]\nroot = \"{}\"\n[server]\napi_listen = \"127.0.0.1:0\"\n",
            folder.path().display()
        ),
    )?;
    Ok((folder, file.display().to_string()))
}

fn pulp(words: &[&str]) -> Result<Output> {
    Ok(Command::new(binary("pulp"))
        .args(words)
        .env("PULP_ADMIN_PASSWORD", pulp_tests::PASSWORD)
        .output()?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_dry_run_tells_whether_there_is_something_to_migrate() -> Result<()> {
    let database = pulp_testkit::shared_postgres()?.create_database("dry_run")?;
    let folder = tempfile::tempdir()?;
    let file = format!("sqlite:{}", folder.path().join("pulp.db").display());
    for url in [database, file] {
        let (_folder, config) = configuration(&url, "memory:")?;
        let dry = || pulp(&["manage-db", "--dry-run", "--config", &config]);
        let fresh = dry()?;
        assert_eq!(fresh.status.code(), Some(1), "{fresh:?}");
        assert_eq!(dry()?.status.code(), Some(1), "the dry run changed something");
        assert!(!fresh.stdout.is_empty(), "it says what there is to do");
        let migrated = pulp(&["manage-db", "--config", &config])?;
        assert_eq!(migrated.status.code(), Some(0), "{migrated:?}");
        let after = dry()?;
        assert_eq!(after.status.code(), Some(0), "{after:?}");
        assert_eq!(text(&after.stdout), "the database is up to date\n");
    }
    Ok(())
}

#[test]
fn a_role_refuses_a_database_that_is_not_migrated_and_says_what_to_do() -> Result<()> {
    let database = pulp_testkit::shared_postgres()?.create_database("fresh")?;
    let (_folder, config) = configuration(&database, &pulp_testkit::shared_rabbitmq()?.url())?;
    for role in ROLES {
        let refused = pulp(&[role, "--config", &config])?;
        assert_eq!(refused.status.code(), Some(1), "{role}: {refused:?}");
        let said = text(&refused.stderr);
        assert!(said.contains("pulp manage-db"), "{role}: {said}");
    }
    Ok(())
}

#[test]
fn a_role_refuses_a_broker_that_other_processes_can_not_reach() -> Result<()> {
    let (_folder, config) = configuration("sqlite:/nonexistent/pulp.db", "memory:")?;
    for role in ROLES {
        let refused = pulp(&[role, "--config", &config])?;
        assert_eq!(refused.status.code(), Some(1), "{role}: {refused:?}");
        let said = text(&refused.stderr);
        assert!(
            said.contains("broker.url") && said.contains("pulp standalone"),
            "{role}: {said}"
        );
    }
    Ok(())
}
