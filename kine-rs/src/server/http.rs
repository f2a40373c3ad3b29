//! Plain HTTP on the client port: health and version.

use crate::api::Api;
use crate::api::maintenance::minor_release;
use ::http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use hyper::body::Incoming;
use proto::etcdserverpb::AlarmType;
use serde_json::json;
use tonic::body::Body;

pub async fn plain(api: &Api, request: Request<Incoming>) -> Response<Body> {
    let query = request.uri().query().unwrap_or("").to_owned();
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/health") => health(api, &query),
        (&Method::GET, "/livez" | "/readyz") => text(StatusCode::OK, "ok"),
        (&Method::GET, "/version") => {
            let minor = minor_release(&api.about.version);
            let body = json!({"etcdserver": api.about.version, "etcdcluster": minor, "storage": minor});
            answer(StatusCode::OK, "application/json", body.to_string())
        }
        (_, "/health" | "/livez" | "/readyz" | "/version") => {
            text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

/// etcd's health: unhealthy while an alarm is raised that the query does not exclude.
fn health(api: &Api, query: &str) -> Response<Body> {
    let excluded = |name: &str| query.split('&').any(|pair| pair == format!("exclude={name}"));
    let view = api.store.view();
    let raised = view
        .alarms
        .iter()
        .filter_map(|(_, alarm)| AlarmType::try_from(*alarm).ok())
        .map(|alarm| alarm.as_str_name())
        .find(|name| !excluded(name));
    match raised {
        None => {
            answer(StatusCode::OK, "application/json", json!({"health": "true", "reason": ""}).to_string())
        }
        Some(name) => {
            let body = json!({"health": "false", "reason": format!("ALARM {name}")});
            answer(StatusCode::SERVICE_UNAVAILABLE, "application/json", body.to_string())
        }
    }
}

fn text(status: StatusCode, body: &str) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", body.to_owned())
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::new(http_body_util::Full::new(bytes::Bytes::from(body))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, ::http::HeaderValue::from_static(content_type));
    response
}
