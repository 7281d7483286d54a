//! Requests that are wrong, and the answer that each gets.

use pulp_model::Digest;
use serde_json::{Value, json};

/// A bad request: verb, path, body, status, code, and a word of the description.
pub(super) type Request<'a> = (&'a str, String, Vec<u8>, u16, &'a str, &'a str);

pub(super) fn bad_requests(upload: &str) -> Vec<Request<'static>> {
    let json = |value: Value| value.to_string().into_bytes();
    let repositories = || "/repositories/".to_owned();
    let import = |repo: &str| format!("/repositories/{repo}/actions/import_upload/");
    let publish = || "/repositories/r/actions/publish/".to_owned();
    let image = |upload: &str| {
        json(
            json!({"upload_id": upload, "unit_type_id": "docker_image", "unit_key": {}, "unit_metadata": {}}),
        )
    };
    let chunk = |offset: &str| format!("/content/uploads/{upload}/{offset}/");
    let unknown = "0197a000-0000-7000-8000-000000000000";
    let with_registry_id = json!({"id": "new", "distributors": [{
        "distributor_type_id": "docker_distributor_web", "distributor_id": "web",
        "distributor_config": {"repo-registry-id": "Not/Valid"}}]});
    let tag = |name: &str| {
        json!({"unit_type_id": "docker_tag", "unit_key": {"name": name, "repo_id": "r"},
            "unit_metadata": {"name": name, "digest": Digest::sha256("x")}})
    };
    let web = "docker_web_distributor_name_cli";
    let export = "docker_export_distributor_name_cli";
    vec![
        ("POST", import("r"), image(unknown), 404, "PLP2004", unknown),
        ("PUT", chunk("10"), b"x".to_vec(), 400, "PLP2003", "10"),
        ("PUT", chunk("first"), b"x".to_vec(), 400, "PLP0015", "first"),
        ("PUT", chunk("0"), vec![0; 6 << 20], 413, "PLP2005", "5242880"),
        (
            "PUT",
            format!("/content/uploads/{unknown}/0/"),
            b"x".to_vec(),
            404,
            "PLP2004",
            unknown,
        ),
        (
            "POST",
            repositories(),
            json(json!({"id": "no spaces"})),
            400,
            "PLP0015",
            "no spaces",
        ),
        (
            "POST",
            repositories(),
            json(json!({"id": "../up"})),
            400,
            "PLP0015",
            "../up",
        ),
        ("POST", repositories(), json(json!({})), 400, "PLP0016", "id"),
        (
            "POST",
            repositories(),
            json(json!({"id": "r"})),
            409,
            "PLP0018",
            "\"r\"",
        ),
        (
            "POST",
            repositories(),
            json(with_registry_id),
            400,
            "DKR1005",
            "Not/Valid",
        ),
        (
            "POST",
            repositories(),
            b"{\"id\": ".to_vec(),
            400,
            "PLP1009",
            "JSON",
        ),
        ("POST", repositories(), b"[1]".to_vec(), 400, "PLP1015", "array"),
        (
            "POST",
            repositories(),
            b"{\"id\": \"\xff\"}".to_vec(),
            400,
            "PLP0019",
            "UTF-8",
        ),
        ("POST", import("r"), json(tag("-x")), 400, "DKR1109", "-x"),
        ("POST", import("nope"), image(upload), 404, "PLP0009", "nope"),
        (
            "POST",
            publish(),
            json(json!({"id": "nope"})),
            404,
            "PLP0009",
            "nope",
        ),
        (
            "POST",
            publish(),
            json(json!({"id": web, "override_config": {"protected": "perhaps"}})),
            400,
            "DKR1004",
            "perhaps",
        ),
        (
            "POST",
            publish(),
            json(json!({"id": export, "override_config": {"export_file": "relative.tar"}})),
            400,
            "DKR1112",
            "relative.tar",
        ),
        (
            "DELETE",
            format!("/tasks/{unknown}/"),
            Vec::new(),
            404,
            "PLP0009",
            unknown,
        ),
        (
            "DELETE",
            "/tasks/no-id/".to_owned(),
            Vec::new(),
            404,
            "PLP0009",
            "no-id",
        ),
        (
            "GET",
            "/repositories/nope/".to_owned(),
            Vec::new(),
            404,
            "PLP0009",
            "nope",
        ),
    ]
}
