//! Users, sessions, uploads.

use std::time::Duration;

use pulp_model::{Login, UploadId};
use pulp_store::{StoreError, users::User};

use crate::support::{BLINK, Bed, LONG, contract, eventually, tick};

contract!(
    a_user_reads_back_as_it_was_made,
    a_login_that_is_taken_is_a_duplicate,
    a_session_names_its_user_until_it_ends,
    a_new_password_ends_the_users_sessions_and_no_others,
    sessions_that_have_ended_are_forgotten,
    of_the_last_two_super_users_one_stays_though_both_are_deleted_at_once,
    an_upload_grows_and_never_shrinks,
    uploads_are_listed_oldest_first,
);

fn user(login: &str) -> User {
    User {
        login: login.parse().unwrap(),
        name: "Ünï 'x'".to_owned(),
        password_hash: "$argon2id$v=19$m=1,t=1,p=1$c2FsdA$aGFzaA".to_owned(),
        roles: vec![pulp_store::users::SUPER_USERS.to_owned()],
    }
}

async fn create(bed: &Bed, user: &User) {
    let mut tx = bed.begin().await.unwrap();
    tx.create_user(user).await.unwrap();
    tx.commit().await.unwrap();
}

async fn open(bed: &Bed, login: &Login, token: &str, lifetime: Duration) {
    let mut tx = bed.begin().await.unwrap();
    let ends = tx.create_session(login, token, lifetime).await.unwrap();
    tx.commit().await.unwrap();
    let now = bed.now().await.unwrap();
    assert!(ends <= now.plus_micros(i64::try_from(lifetime.as_micros()).unwrap()));
}

async fn a_user_reads_back_as_it_was_made(bed: &Bed) {
    let (admin, other) = (user("b@example.org"), user("a"));
    create(bed, &admin).await;
    create(bed, &other).await;
    assert_eq!(bed.user(&admin.login).await.unwrap(), Some(admin.clone()));
    assert_eq!(bed.users().await.unwrap(), [other, admin]);
    assert_eq!(bed.user(&"nobody".parse().unwrap()).await.unwrap(), None);
}

async fn a_login_that_is_taken_is_a_duplicate(bed: &Bed) {
    create(bed, &user("admin")).await;
    let mut tx = bed.begin().await.unwrap();
    let again = tx.create_user(&user("admin")).await;
    assert!(matches!(again, Err(StoreError::Duplicate(_))), "{again:?}");
    drop(tx);
    create(bed, &user("Admin")).await;
}

async fn a_session_names_its_user_until_it_ends(bed: &Bed) {
    let admin = user("admin");
    create(bed, &admin).await;
    open(bed, &admin.login, "long", LONG).await;
    open(bed, &admin.login, "short", Duration::from_millis(300)).await;
    assert_eq!(bed.session_user("long").await.unwrap(), Some(admin.clone()));
    assert_eq!(bed.session_user("unheard of").await.unwrap(), None);
    eventually("the session ends", || async {
        bed.session_user("short").await.unwrap().is_none()
    })
    .await;
    assert_eq!(bed.session_user("long").await.unwrap(), Some(admin));
}

async fn a_new_password_ends_the_users_sessions_and_no_others(bed: &Bed) {
    let (admin, other) = (user("admin"), user("other"));
    create(bed, &admin).await;
    create(bed, &other).await;
    open(bed, &admin.login, "1", LONG).await;
    open(bed, &admin.login, "2", LONG).await;
    open(bed, &other.login, "3", LONG).await;
    let mut tx = bed.begin().await.unwrap();
    assert!(tx.set_password(&admin.login, "new").await.unwrap());
    assert!(!tx.set_password(&"nobody".parse().unwrap(), "new").await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!(
        bed.user(&admin.login).await.unwrap().unwrap().password_hash,
        "new"
    );
    assert_eq!(bed.session_user("1").await.unwrap(), None);
    assert_eq!(bed.session_user("2").await.unwrap(), None);
    assert_eq!(bed.session_user("3").await.unwrap(), Some(other));
}

async fn sessions_that_have_ended_are_forgotten(bed: &Bed) {
    let admin = user("admin");
    create(bed, &admin).await;
    open(bed, &admin.login, "ended", BLINK).await;
    tick(bed).await;
    open(bed, &admin.login, "new", LONG).await;
    assert_eq!(bed.number("SELECT COUNT(*) FROM sessions").await, 1);
}

async fn of_the_last_two_super_users_one_stays_though_both_are_deleted_at_once(bed: &Bed) {
    let (ann, bob) = (user("ann"), user("bob"));
    let mut plain = user("plain");
    plain.roles.clear();
    for user in [&ann, &bob, &plain] {
        create(bed, user).await;
    }
    let delete = async |login: &Login| {
        let mut tx = bed.begin().await.unwrap();
        let may_go = !tx.is_last_super_user(login).await.unwrap();
        // Whoever asks now waits for this one's end.
        tick(bed).await;
        if may_go {
            assert!(tx.delete_user(login).await.unwrap());
        }
        tx.commit().await.unwrap();
        may_go
    };
    let (first, second) = tokio::join!(delete(&ann.login), delete(&bob.login));
    assert_ne!(first, second);
    let left: Vec<_> = bed.users().await.unwrap();
    assert_eq!(left.iter().filter(|user| user.is_super_user()).count(), 1);
    assert!(delete(&plain.login).await);
}

async fn an_upload_grows_and_never_shrinks(bed: &Bed) {
    let mut tx = bed.begin().await.unwrap();
    let id = tx.create_upload(&"admin".parse().unwrap()).await.unwrap();
    tx.commit().await.unwrap();
    let begun = bed.upload(id).await.unwrap().unwrap();
    assert_eq!((begun.login.as_str(), begun.size), ("admin", 0));
    let large = 5_000_000_000_000;
    for (end, size) in [(100, 100), (100, 100), (40, 100), (large, large), (1, large)] {
        let mut tx = bed.begin().await.unwrap();
        assert!(tx.grow_upload(id, end).await.unwrap());
        tx.commit().await.unwrap();
        assert_eq!(bed.upload(id).await.unwrap().unwrap().size, size);
    }
    let mut tx = bed.begin().await.unwrap();
    assert!(!tx.grow_upload(UploadId::new(), 5).await.unwrap());
    assert!(tx.delete_upload(id).await.unwrap());
    assert!(!tx.delete_upload(id).await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!(bed.upload(id).await.unwrap(), None);
}

async fn uploads_are_listed_oldest_first(bed: &Bed) {
    let mut ids = Vec::new();
    for _ in 0..3 {
        let mut tx = bed.begin().await.unwrap();
        ids.push(tx.create_upload(&"admin".parse().unwrap()).await.unwrap());
        tx.commit().await.unwrap();
    }
    let found: Vec<_> = bed.uploads().await.unwrap().iter().map(|u| u.id).collect();
    assert_eq!(found, ids);
}
