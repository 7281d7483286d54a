//! The schema.

use futures::future::join_all;
use pulp_store::StoreError;

use crate::support::{Bed, contract};

contract!(
    a_migrated_database_has_nothing_pending_and_migrating_again_changes_nothing,
    a_schema_of_a_newer_release_is_refused,
);

async fn a_migrated_database_has_nothing_pending_and_migrating_again_changes_nothing(bed: &Bed) {
    bed.create_repository("kept").await;
    assert_eq!(bed.pending_migrations().await.unwrap(), Vec::<String>::new());
    bed.check_schema().await.unwrap();
    bed.migrate().await.unwrap();
    assert!(bed.repository_exists(&"kept".parse().unwrap()).await.unwrap());
}

async fn a_schema_of_a_newer_release_is_refused(bed: &Bed) {
    bed.execute("UPDATE _sqlx_migrations SET version = 9999 WHERE version = 2")
        .await;
    for result in [bed.check_schema().await, bed.migrate().await] {
        let Err(StoreError::SchemaMismatch(why)) = result else {
            panic!("{result:?}");
        };
        assert!(why.contains("9999"), "{why}");
    }
}

async fn an_empty_database_tells_what_is_pending(bed: &Bed) {
    let expected = bed.pending_migrations().await.unwrap();
    let numbers: Vec<&str> = expected.iter().filter_map(|name| name.get(..4)).collect();
    let all: Vec<String> = (1..=numbers.len()).map(|n| format!("{n:04}")).collect();
    assert_eq!(
        numbers, all,
        "each number once, in their order, of both sets together"
    );
    assert_eq!(expected.first().map(String::as_str), Some("0001 initial"));
    assert!(expected.len() >= 6, "{expected:?}");
    let Err(StoreError::SchemaMismatch(why)) = bed.check_schema().await else {
        panic!("an empty database passes");
    };
    assert_eq!(why, format!("pending: {}", expected.join(", ")));
    // Looking has made nothing.
    assert_eq!(bed.pending_migrations().await.unwrap(), expected);
}

async fn processes_that_migrate_at_once_all_succeed(bed: &Bed) {
    let mut stores = Vec::new();
    for _ in 0..4 {
        stores.push(bed.another_process().await);
    }
    let pending = bed.pending_migrations().await.unwrap().len();
    for result in join_all(stores.iter().map(pulp_store::Store::migrate)).await {
        result.unwrap();
    }
    for store in &stores {
        store.check_schema().await.unwrap();
    }
    let made = bed.number("SELECT COUNT(*) FROM _sqlx_migrations").await;
    assert_eq!(usize::try_from(made).unwrap(), pending);
}

/// These begin without a schema.
mod sqlite_empty {
    use super::Bed;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_empty_database_tells_what_is_pending() {
        super::an_empty_database_tells_what_is_pending(&Bed::empty_sqlite().await).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn processes_that_migrate_at_once_all_succeed() {
        super::processes_that_migrate_at_once_all_succeed(&Bed::empty_sqlite().await).await;
    }
}

mod postgres_empty {
    use super::Bed;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_empty_database_tells_what_is_pending() {
        let bed = Bed::empty_postgres("pending").await;
        super::an_empty_database_tells_what_is_pending(&bed).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn processes_that_migrate_at_once_all_succeed() {
        let bed = Bed::empty_postgres("migrate").await;
        super::processes_that_migrate_at_once_all_succeed(&bed).await;
    }
}
