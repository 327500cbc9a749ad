//! The opening handshake (RFC 6455, section 4), with the host on one side and the sandbox on the
//! other.
//!
//! Invariant: what is not a proper handshake for the protocol `websocket` is refused, on both
//! sides: after it no rule but this module's looks at the bytes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    self, CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{Method, StatusCode, Version, request, response};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use zeroize::Zeroizing;

use super::Relay;
use super::extension::{Offer, agree};
use crate::proxy::refusal::Refusal;

/// Bytes inside a key.
const KEY_BYTES: usize = 16;

/// A sandbox's request for a WebSocket.
pub(crate) struct Handshake {
    /// What a host that understood must answer.
    accept: String,
    /// Subprotocols in the sandbox's words and as they are sent, which differ where one holds a
    /// token.
    asked: Vec<String>,
    sent: Vec<Zeroizing<String>>,
    offer: Option<Offer>,
}

impl Handshake {
    /// The handshake in a request's head as the sandbox sent it; `None` when none is asked for.
    pub fn of(parts: &request::Parts) -> Result<Option<Self>, Refusal> {
        let headers = &parts.headers;
        if !headers.contains_key(UPGRADE) && !names_upgrade(headers) {
            return Ok(None);
        }
        let proper = parts.version == Version::HTTP_11
            && parts.method == Method::GET
            && names_upgrade(headers)
            && the_only(headers, UPGRADE).is_some_and(is_websocket)
            && the_only(headers, SEC_WEBSOCKET_VERSION).is_some_and(|version| version == b"13");
        let key = the_only(headers, SEC_WEBSOCKET_KEY).filter(|key| {
            STANDARD
                .decode(key)
                .is_ok_and(|bytes| bytes.len() == KEY_BYTES)
        });
        let (true, Some(key)) = (proper, key) else {
            return Err(Refusal::Upgrade);
        };
        let empty = headers
            .get(header::CONTENT_LENGTH)
            .is_none_or(|length| length == "0");
        if headers.contains_key(header::TRANSFER_ENCODING) || !empty {
            return Err(Refusal::Framing("a body in a request to upgrade"));
        }
        Ok(Some(Self {
            accept: derive_accept_key(key),
            asked: listed(headers, SEC_WEBSOCKET_PROTOCOL).ok_or(Refusal::Upgrade)?,
            sent: Vec::new(),
            offer: Offer::of(headers),
        }))
    }

    /// Completes the head of the request to the host, after the fields of this connection were
    /// dropped from it and the values were put in place.
    pub fn write_request(&mut self, headers: &mut HeaderMap) {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        match self.offer {
            Some(offer) => drop(headers.insert(SEC_WEBSOCKET_EXTENSIONS, offer.for_host())),
            None => drop(headers.remove(SEC_WEBSOCKET_EXTENSIONS)),
        }
        let sent = listed(headers, SEC_WEBSOCKET_PROTOCOL).unwrap_or_default();
        // A value with a comma would make two of one: then none can be told from another.
        if sent.len() == self.asked.len() {
            self.sent = sent.into_iter().map(Zeroizing::new).collect();
        }
    }

    /// Checks the host's answer as it came. Gives the fields that this answer must have towards
    /// the sandbox (over the re-sealed others, which hold none of the connection any more), and
    /// the relay for what follows.
    pub fn accept(self, answer: &response::Parts) -> Result<(HeaderMap, Relay), Refusal> {
        let headers = &answer.headers;
        let accepts = the_only(headers, SEC_WEBSOCKET_ACCEPT)
            .is_some_and(|accept| accept == self.accept.as_bytes());
        let proper = answer.status == StatusCode::SWITCHING_PROTOCOLS
            && names_upgrade(headers)
            && the_only(headers, UPGRADE).is_some_and(is_websocket);
        if !proper || !accepts {
            return Err(Refusal::UpgradeAnswer);
        }
        let mut fields = HeaderMap::new();
        fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
        let accept = HeaderValue::try_from(&self.accept).map_err(|_| Refusal::Internal)?;
        fields.insert(SEC_WEBSOCKET_ACCEPT, accept);
        if let Some(protocol) = self.chosen_protocol(headers)? {
            fields.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        let agreed = agree(self.offer, headers).map_err(|()| Refusal::UpgradeAnswer)?;
        let Some(agreed) = agreed else {
            return Ok((fields, Relay::new(None, None)));
        };
        fields.insert(SEC_WEBSOCKET_EXTENSIONS, agreed.answer);
        Ok((fields, Relay::new(Some(agreed.up), Some(agreed.down))))
    }

    /// The subprotocol the host chose, in the sandbox's words.
    fn chosen_protocol(&self, headers: &HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
        if !headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
            return Ok(None);
        }
        let chosen = the_only(headers, SEC_WEBSOCKET_PROTOCOL);
        let mut pairs = self.sent.iter().zip(&self.asked);
        let asked = pairs.find(|(sent, _)| chosen == Some(sent.as_bytes()));
        let (_, asked) = asked.ok_or(Refusal::UpgradeAnswer)?;
        let value = HeaderValue::try_from(asked).map_err(|_| Refusal::Internal)?;
        Ok(Some(value))
    }
}

/// Fields of an answer that [`Handshake::accept`] writes, to be dropped from the host's.
pub(crate) const ANSWER_FIELDS: [HeaderName; 3] = [
    SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_PROTOCOL,
];

fn is_websocket(value: &[u8]) -> bool {
    value.eq_ignore_ascii_case(b"websocket")
}

fn names_upgrade(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CONNECTION).iter();
    values
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
}

/// The value of a field that there must be one of.
fn the_only(headers: &HeaderMap, name: HeaderName) -> Option<&[u8]> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Some(value.as_bytes().trim_ascii()),
        _ => None,
    }
}

/// The elements of a list over all fields of a name; `None` when one is no text.
fn listed(headers: &HeaderMap, name: HeaderName) -> Option<Vec<String>> {
    let mut found = Vec::new();
    for value in headers.get_all(name) {
        let parts = value.to_str().ok()?.split(',').map(str::trim);
        found.extend(parts.filter(|part| !part.is_empty()).map(str::to_owned));
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Key and answer from RFC 6455, section 1.3.
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    const ASKED: [(&str, &str); 4] = [
        ("upgrade", "WebSocket"),
        ("connection", "keep-alive, Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", KEY),
    ];

    fn ask(method: &str, fields: &[(&str, &str)]) -> Result<Option<Handshake>, Refusal> {
        let mut request = http::Request::builder().method(method).uri("/");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        Handshake::of(&request.body(()).unwrap().into_parts().0)
    }

    fn answer(fields: &[(&str, &str)]) -> response::Parts {
        let mut response = http::Response::builder().status(101);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        response.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_a_proper_handshake_is_one() {
        assert!(matches!(ask("GET", &[]), Ok(None)));
        assert!(matches!(ask("GET", &ASKED), Ok(Some(_))));
        assert!(matches!(ask("POST", &ASKED), Err(Refusal::Upgrade)));
        for (name, value) in [
            ("upgrade", "h2c"),
            ("upgrade", "websocket, h2c"),
            ("upgrade", "websocket/13"),
            ("connection", "keep-alive"),
            ("sec-websocket-version", "8"),
            ("sec-websocket-version", "13, 8"),
            ("sec-websocket-key", "c2hvcnQ="),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZ"),
        ] {
            let without: Vec<_> = ASKED.into_iter().filter(|field| field.0 != name).collect();
            let refused =
                |fields: &[(&str, &str)]| matches!(ask("GET", fields), Err(Refusal::Upgrade));
            assert!(refused(&without), "without {name}");
            assert!(
                refused(&[&without[..], &[(name, value)]].concat()),
                "{name}: {value}"
            );
            if name != "connection" {
                assert!(
                    refused(&[&ASKED[..], &[(name, value)]].concat()),
                    "also {name}: {value}"
                );
            }
        }
        for body in [("content-length", "3"), ("transfer-encoding", "chunked")] {
            let asked = ask("GET", &[&ASKED[..], &[body]].concat());
            assert!(matches!(asked, Err(Refusal::Framing(_))));
        }
    }

    #[test]
    fn the_host_must_accept_what_was_asked() {
        let accepted = [
            ("upgrade", "websocket"),
            ("connection", "upgrade"),
            ("sec-websocket-accept", ACCEPT),
        ];
        let verdict = |answers: &[(&str, &str)]| {
            let offers = [
                ("sec-websocket-protocol", "chat, key.osb"),
                ("sec-websocket-protocol", "v2"),
                ("sec-websocket-extensions", "permessage-deflate, x"),
            ];
            let mut handshake = ask("GET", &[&ASKED[..], &offers].concat())
                .unwrap()
                .unwrap();
            let mut sent = HeaderMap::new();
            sent.insert(
                SEC_WEBSOCKET_PROTOCOL,
                "chat, key.VALUE, v2".parse().unwrap(),
            );
            sent.insert(SEC_WEBSOCKET_EXTENSIONS, "x".parse().unwrap());
            handshake.write_request(&mut sent);
            assert_eq!(sent[SEC_WEBSOCKET_EXTENSIONS], "permessage-deflate");
            assert_eq!(
                (&sent[UPGRADE], &sent[CONNECTION]),
                (
                    &HeaderValue::from_static("websocket"),
                    &HeaderValue::from_static("Upgrade")
                )
            );
            handshake.accept(&answer(answers)).map(|(fields, _)| fields)
        };
        let fields = verdict(&accepted).unwrap();
        assert_eq!(fields.len(), 3);
        assert_eq!(fields[SEC_WEBSOCKET_ACCEPT], ACCEPT);
        for (chosen, told) in [("key.VALUE", "key.osb"), ("v2", "v2")] {
            let chosen = ("sec-websocket-protocol", chosen);
            let fields = verdict(&[&accepted[..], &[chosen]].concat()).unwrap();
            assert_eq!(fields[SEC_WEBSOCKET_PROTOCOL], told);
        }
        for extra in [
            ("sec-websocket-protocol", "other"),
            ("sec-websocket-protocol", "key.osb"),
            ("sec-websocket-protocol", ""),
            ("sec-websocket-extensions", "x"),
            ("sec-websocket-accept", ACCEPT),
            ("upgrade", "h2c"),
        ] {
            let refused = verdict(&[&accepted[..], &[extra]].concat());
            assert_eq!(refused.unwrap_err(), Refusal::UpgradeAnswer, "{extra:?}");
        }
        for missing in 0..3 {
            let mut fields = accepted.to_vec();
            fields.remove(missing);
            assert!(verdict(&fields).is_err());
        }
        let wrong = [accepted[0], accepted[1], ("sec-websocket-accept", KEY)];
        assert!(verdict(&wrong).is_err());
    }
}
