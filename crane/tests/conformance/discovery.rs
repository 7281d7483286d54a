//! Content discovery: tags and referrers, in pages.

use pulp_model::Digest;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{Suite, common::OCI_INDEX, header, link, names};

impl Suite {
    pub(crate) async fn tags(&mut self) {
        let path = self.path("tags/list");
        let head = self.status("HEAD of the tags", Method::HEAD, &path, &[200]).await;
        let reply = self
            .status(
                "GET request to list tags should yield 200 response and be in sorted order",
                Method::GET,
                &path,
                &[200],
            )
            .await;
        let (h, g) = (header(&head, "content-length"), header(&reply, "content-length"));
        self.check(
            "HEAD and GET agree on the length of the tags",
            &path,
            h == g && g.is_some(),
            &format!("{h:?} {g:?}"),
        );
        let body: Value = reply.json().await.unwrap();
        let got = names(&body["tags"]);
        self.check(
            "name is the repository's",
            &path,
            body["name"] == self.namespace.as_str(),
            &body.to_string(),
        );
        self.check("tags are in order", &path, got.is_sorted(), &format!("{got:?}"));
        let expected = self.all_tags.clone();
        self.check(
            "all tags are there",
            &path,
            expected.is_empty() || got == expected,
            &format!("{got:?}"),
        );

        for n in [1, 2, got.len(), got.len() + 1] {
            let (mut seen, mut next, mut sizes) = (Vec::new(), Some(format!("{path}?n={n}")), Vec::new());
            while let Some(uri) = next.take() {
                let page = self.ask(Method::GET, &uri, &[]).await;
                next = link(&page);
                let body: Value = page.json().await.unwrap();
                let page = names(&body["tags"]);
                sizes.push(page.len());
                seen.extend(page);
                if sizes.len() > got.len() + 1 {
                    break;
                }
            }
            self.check(
                "GET number of tags should be limitable by `n` query parameter",
                &path,
                sizes.iter().all(|s| *s <= n),
                &format!("{sizes:?}"),
            );
            self.check(
                "pages make up the whole list",
                &path,
                seen == got,
                &format!("n={n}: {seen:?}"),
            );
        }
        let none = self.ask(Method::GET, &format!("{path}?n=0"), &[]).await;
        let linked = link(&none);
        let body: Value = none.json().await.unwrap();
        self.check(
            "n=0 is an empty list without Link",
            &path,
            body["tags"] == json!([]) && linked.is_none(),
            &body.to_string(),
        );
        if let Some(first) = got.first() {
            let rest: Value = self
                .ask(Method::GET, &format!("{path}?last={first}"), &[])
                .await
                .json()
                .await
                .unwrap();
            self.check(
                "GET start of tag is set by `last` query parameter",
                &path,
                names(&rest["tags"]) == got[1..],
                &rest.to_string(),
            );
            let rest: Value = self
                .ask(Method::GET, &format!("{path}?n=1&last={first}0"), &[])
                .await
                .json()
                .await
                .unwrap();
            let after: Vec<_> = got
                .iter()
                .filter(|t| **t > format!("{first}0"))
                .take(1)
                .cloned()
                .collect();
            self.check(
                "`last` need not be a tag",
                &path,
                names(&rest["tags"]) == after,
                &rest.to_string(),
            );
        }
    }

    pub(crate) async fn referrers(&mut self) {
        let path = self.path(&format!("referrers/{}", Digest::sha256("unknown")));
        let reply = self
            .status(
                "GET request to nonexistent blob should result in empty 200 response",
                Method::GET,
                &path,
                &[200],
            )
            .await;
        let content_type = header(&reply, "content-type").unwrap_or_default().to_owned();
        let body: Value = reply.json().await.unwrap();
        let so = body["manifests"] == json!([]) && body["schemaVersion"] == 2 && content_type == OCI_INDEX;
        self.check(
            "referrers of nothing are an empty index",
            &path,
            so,
            &body.to_string(),
        );
        for subject in self.subjects.clone() {
            let path = self.path(&format!("referrers/{subject}"));
            let (all, filters, _) = self.walk(&path).await;
            self.check(
                "GET request to existing blob should yield 200",
                &path,
                !all.is_empty(),
                "none",
            );
            self.check(
                "no filter is said to be applied",
                &path,
                filters.is_none(),
                "one is",
            );
            let well_formed = all.iter().all(|m| {
                m["digest"].is_string()
                    && m["size"].is_u64()
                    && m["mediaType"].is_string()
                    && m["annotations"].is_object()
            });
            self.check(
                "each is a descriptor with its annotations",
                &path,
                well_formed,
                "not so",
            );
            let wanted = self.artifact_type.clone();
            let (some, filters, pages) = self
                .walk(&format!("{path}?artifactType={}", wanted.replace('+', "%2B")))
                .await;
            self.check(
                "GET request to existing blob with filter should yield 200",
                &path,
                !some.is_empty(),
                "none",
            );
            self.check(
                "OCI-Filters-Applied names the filter",
                &path,
                filters.as_deref() == Some("artifactType"),
                "absent",
            );
            let expected: Vec<_> = all
                .iter()
                .filter(|m| m["artifactType"] == wanted.as_str())
                .cloned()
                .collect();
            self.check(
                "the filter leaves those of the type and no others",
                &path,
                some == expected,
                &format!("{} of {}", some.len(), expected.len()),
            );
            let (limited, _, pages_of_100) = self.walk(&format!("{path}?n=100")).await;
            let so = limited == all && (pages_of_100 > pages || all.len() <= 100);
            self.check(
                "pages of referrers make up the whole list",
                &path,
                so,
                &limited.len().to_string(),
            );
            // What refers is itself there to be pulled.
            if let Some(digest) = all
                .first()
                .and_then(|m| m["digest"].as_str())
                .map(ToOwned::to_owned)
            {
                self.content("manifests", &digest).await;
            }
        }
        let missing = self.path(&format!("referrers/{}", Digest::sha256("missing")));
        self.status(
            "GET request to missing manifest should yield 200",
            Method::GET,
            &missing,
            &[200],
        )
        .await;
    }

    /// All referrers, page by page: they, `OCI-Filters-Applied`, and the number of pages.
    pub(crate) async fn walk(&mut self, path: &str) -> (Vec<Value>, Option<String>, usize) {
        let (mut all, mut filters, mut pages) = (Vec::new(), None, 0);
        let mut next = Some(path.to_owned());
        while let Some(uri) = next.take() {
            let reply = self.ask(Method::GET, &uri, &[]).await;
            let so = reply.status() == 200 && header(&reply, "content-type") == Some(OCI_INDEX);
            self.check(
                "each page of referrers is an index",
                &uri,
                so,
                reply.status().as_str(),
            );
            next = link(&reply).filter(|_| pages < 100);
            filters = header(&reply, "oci-filters-applied").map(ToOwned::to_owned);
            let body: Value = reply.json().await.unwrap();
            all.extend(body["manifests"].as_array().cloned().unwrap_or_default());
            pages += 1;
        }
        (all, filters, pages)
    }
}
