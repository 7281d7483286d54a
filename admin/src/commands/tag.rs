//! `docker repo tag`: an upload without a file.

use serde_json::{Map, Value, json};

use super::{App, Stop, uploads};
use crate::{cli::TagArgs, upload::tracker::Store};

pub(super) async fn run(app: &App, args: &TagArgs) -> Result<(), Stop> {
    app.screen.title("Unit Upload");
    app.repository(&args.repo_id, &[]).await?;
    let object = |value: Value| match value {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    // `digest` is the name that servers before pulp_docker 3 read.
    let draft = uploads::Draft {
        source: None,
        unit_type_id: "docker_tag",
        unit_key: object(json!({"name": args.tag_name, "repo_id": args.repo_id})),
        unit_metadata: object(json!({
            "name": args.tag_name, "manifest_digest": args.digest, "digest": args.digest,
        })),
        override_config: Map::new(),
    };
    app.screen.line("Creating upload requests on the server...");
    let store = Store::open(&app.config.upload_dir)?;
    let created = uploads::create(app, &store, args.repo_id.as_str(), vec![draft]).await?;
    uploads::process_all(app, &store, created, args.bg, uploads::Refused::default()).await
}
