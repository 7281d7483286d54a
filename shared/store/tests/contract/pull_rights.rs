//! Robots, and who may pull from protected repositories.

use std::collections::BTreeSet;

use pulp_model::{Puller, RegistryId, RepositoryId, Timestamp};
use pulp_store::{StoreError, users::User};

use crate::{
    publishing::new_distributor,
    support::{Bed, contract, finish},
};

contract!(
    a_robot_reads_back_as_it_was_made,
    a_robot_has_one_secret_at_a_time_and_is_made_once,
    a_right_is_given_once_and_taken_once,
    a_right_needs_a_repository_and_somebody_who_is_there,
    rights_go_with_their_repository_user_or_robot,
    a_name_is_open_to_whoever_may_pull_from_all_repositories_that_claim_it,
);

async fn create_user(bed: &Bed, login: &str) {
    let user = User {
        login: login.parse().unwrap(),
        name: login.to_owned(),
        password_hash: String::new(),
        roles: Vec::new(),
    };
    let mut tx = bed.begin().await.unwrap();
    tx.create_user(&user).await.unwrap();
    tx.commit().await.unwrap();
}

async fn create_robot(bed: &Bed, name: &str) {
    let mut tx = bed.begin().await.unwrap();
    tx.create_robot(&name.parse().unwrap(), "", "hash", None)
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

async fn grant(bed: &Bed, repo: &RepositoryId, who: &Puller) -> bool {
    let mut tx = bed.begin().await.unwrap();
    let granted = tx.grant_pull(repo, who).await.unwrap();
    if granted {
        tx.commit().await.unwrap();
    }
    granted
}

fn puller(text: &str) -> Puller {
    text.parse().unwrap()
}

async fn a_robot_reads_back_as_it_was_made(bed: &Bed) {
    let mut tx = bed.begin().await.unwrap();
    let ends = Timestamp(5_000_000);
    tx.create_robot(&"ci".parse().unwrap(), "of the build's", "abc", Some(ends))
        .await
        .unwrap();
    tx.create_robot(&"a.b".parse().unwrap(), "", "def", None)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let robots = bed.robots().await.unwrap();
    assert_eq!(
        robots.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(),
        ["a.b", "ci"]
    );
    let ci = bed.robot(&"ci".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(ci, robots[1]);
    assert_eq!(
        (ci.description.as_str(), ci.secret_hash.as_str(), ci.expires),
        ("of the build's", "abc", Some(ends))
    );
    assert!(ci.created <= bed.now().await.unwrap());
    assert_eq!(bed.robot(&"none".parse().unwrap()).await.unwrap(), None);
}

async fn a_robot_has_one_secret_at_a_time_and_is_made_once(bed: &Bed) {
    create_robot(bed, "ci").await;
    let name = "ci".parse().unwrap();
    let mut tx = bed.begin().await.unwrap();
    let again = tx.create_robot(&name, "", "other", None).await;
    assert!(matches!(again, Err(StoreError::Duplicate(_))), "{again:?}");
    drop(tx);
    let mut tx = bed.begin().await.unwrap();
    assert!(tx.set_robot_secret(&name, "another").await.unwrap());
    assert!(!tx.set_robot_secret(&"none".parse().unwrap(), "x").await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!(bed.robot(&name).await.unwrap().unwrap().secret_hash, "another");
    let mut tx = bed.begin().await.unwrap();
    assert!(tx.delete_robot(&name).await.unwrap());
    assert!(!tx.delete_robot(&name).await.unwrap());
    tx.commit().await.unwrap();
    assert!(bed.robots().await.unwrap().is_empty());
}

async fn a_right_is_given_once_and_taken_once(bed: &Bed) {
    let (a, b) = (bed.create_repository("a").await, bed.create_repository("b").await);
    create_user(bed, "ann").await;
    create_robot(bed, "ann").await;
    let (ann, robot) = (puller("ann"), puller("robot+ann"));
    for (repo, who) in [(&a, &ann), (&a, &robot), (&b, &ann), (&a, &ann)] {
        assert!(grant(bed, repo, who).await);
    }
    assert_eq!(bed.pullers(&a).await.unwrap(), [ann.clone(), robot.clone()]);
    assert_eq!(bed.pullable(&ann).await.unwrap(), [a.clone(), b]);
    assert_eq!(bed.pullable(&robot).await.unwrap(), std::slice::from_ref(&a));
    let mut tx = bed.begin().await.unwrap();
    assert!(tx.revoke_pull(&a, &ann).await.unwrap());
    assert!(!tx.revoke_pull(&a, &ann).await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!(bed.pullers(&a).await.unwrap(), [robot]);
}

async fn a_right_needs_a_repository_and_somebody_who_is_there(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    create_user(bed, "ann").await;
    let absent = "absent".parse().unwrap();
    for (repo, who) in [
        (&absent, "ann"),
        (&repo, "bob"),
        (&repo, "robot+ann"),
        (&repo, "robot+none"),
    ] {
        assert!(!grant(bed, repo, &puller(who)).await, "{repo} {who}");
    }
    assert!(bed.pullers(&repo).await.unwrap().is_empty());
}

async fn rights_go_with_their_repository_user_or_robot(bed: &Bed) {
    let (a, b) = (bed.create_repository("a").await, bed.create_repository("b").await);
    create_user(bed, "ann").await;
    create_robot(bed, "ci").await;
    for repo in [&a, &b] {
        assert!(grant(bed, repo, &puller("ann")).await);
        assert!(grant(bed, repo, &puller("robot+ci")).await);
    }
    let mut tx = bed.fenced().await;
    tx.delete_repository(&a).await.unwrap();
    finish(tx).await;
    assert_eq!(
        bed.pullable(&puller("ann")).await.unwrap(),
        std::slice::from_ref(&b)
    );
    let mut tx = bed.begin().await.unwrap();
    assert!(tx.delete_user(&"ann".parse().unwrap()).await.unwrap());
    assert!(!tx.delete_user(&"ann".parse().unwrap()).await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!(bed.pullers(&b).await.unwrap(), [puller("robot+ci")]);
    let mut tx = bed.begin().await.unwrap();
    assert!(tx.delete_robot(&"ci".parse().unwrap()).await.unwrap());
    tx.commit().await.unwrap();
    assert!(bed.pullers(&b).await.unwrap().is_empty());
    // Who comes after with the same name has none of the rights.
    create_robot(bed, "ci").await;
    assert!(bed.pullable(&puller("robot+ci")).await.unwrap().is_empty());
}

async fn a_name_is_open_to_whoever_may_pull_from_all_repositories_that_claim_it(bed: &Bed) {
    let names: BTreeSet<RegistryId> = ["demo/one", "demo/two", "demo/none"]
        .map(|n| n.parse().unwrap())
        .into();
    let (a, b) = (bed.create_repository("a").await, bed.create_repository("b").await);
    create_user(bed, "ann").await;
    let ann = puller("ann");
    let mut tx = bed.begin().await.unwrap();
    for (repo, distributor) in [(&a, "web"), (&a, "export"), (&b, "web")] {
        tx.put_distributor(repo, &new_distributor(distributor))
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
    let open = async || -> Vec<String> {
        let open = bed.names_open_to(&ann, &names).await.unwrap();
        open.iter().map(ToString::to_string).collect()
    };
    assert!(grant(bed, &a, &ann).await);
    assert!(open().await.is_empty(), "nothing is published");
    bed.execute("UPDATE distributors SET published_registry_id = 'demo/one' WHERE repo_id = 'a'")
        .await;
    assert_eq!(open().await, ["demo/one"]);
    bed.execute("UPDATE distributors SET published_registry_id = 'demo/two' WHERE repo_id = 'b'")
        .await;
    assert_eq!(open().await, ["demo/one"], "no right on b");
    bed.execute("UPDATE distributors SET published_registry_id = 'demo/one' WHERE repo_id = 'b'")
        .await;
    assert!(open().await.is_empty(), "b claims the name as well");
    assert!(grant(bed, &b, &ann).await);
    assert_eq!(open().await, ["demo/one"]);
    let nobody = bed.names_open_to(&puller("robot+ci"), &names).await.unwrap();
    assert!(nobody.is_empty());
}
