//! One `VerifyKey` on the wire, without tonic's layers: it is called for every request of every service, and read as a
//! stream of messages, boxed at each layer and routed, it would cost more to carry than to decide.
//! Source: the gRPC protocol over HTTP/2 (`PROTOCOL-HTTP2.md` of grpc/grpc): a message is one byte of flags, four of
//! length, and the bytes; the status comes in trailers. Must not decide anything; what is not a plain unary request
//! is refused as tonic would, in the words of our contract. The body is read to its end before any refusal, within the
//! service's own time.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::poll;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use prost::{
    Message,
    bytes::{Buf as _, Bytes, BytesMut},
};
use tokio::time::timeout;
use tonic::{Code, Status, body::Body, metadata::MetadataMap};

use super::{
    call_log::CallRecord,
    calls::Calls,
    encode_verified::encode_verified_bytes,
    key_service,
    status::{Refusal, encode_error},
};
use crate::{
    domain::permission::Permission,
    proto::v1,
    service::{ServiceError, Verified},
};

/// What stands before a message: flags and length.
const PREFIX_BYTES: usize = 5;
/// How much of a body that is too large is read before it is refused.
const READ_BYTES_MAX: usize = 1 << 20;
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The body of an answer: one message and the trailers of success, or whatever tonic made.
pub enum AnswerBody {
    Message { message: Option<Bytes>, ended: bool },
    Tonic(Body),
}

impl From<Body> for AnswerBody {
    fn from(body: Body) -> Self {
        Self::Tonic(body)
    }
}

/// Answers one call; messages are at most `bytes_max` bytes.
pub async fn verify_call(
    calls: &Calls,
    request: Request<Incoming>,
    record: CallRecord,
    bytes_max: usize,
) -> Response<AnswerBody> {
    let (head, body) = request.into_parts();
    let read = {
        let mut reading = pin!(read_message(&head.headers, body, bytes_max));
        // Nearly always the message is there with its headers, and needs no timer.
        match poll!(reading.as_mut()) {
            Poll::Ready(read) => Some((read, Duration::ZERO)),
            Poll::Pending => {
                let begun = Instant::now();
                timeout(calls.verify_timeout, reading).await.ok().map(|read| (read, begun.elapsed()))
            }
        }
    };
    let answered = match read {
        Some((Ok(message), spent)) => {
            let metadata = MetadataMap::from_headers(head.headers);
            calls.run(metadata, record, Permission::KeysVerify, spent, message, key_service::verify).await
        }
        Some((Err(refusal), _)) => Err(refusal.into_status()),
        None => Err(encode_error(&ServiceError::timed_out(), record.request_id)),
    };
    match answered {
        Ok(answer) => {
            let body = AnswerBody::Message { message: Some(encode(answer)), ended: false };
            let mut response = Response::new(body);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
        Err(status) => status.into_http::<Body>().map(AnswerBody::Tonic),
    }
}

async fn read_message(
    headers: &HeaderMap,
    mut body: Incoming,
    bytes_max: usize,
) -> Result<v1::VerifyKeyRequest, Refusal> {
    let bytes = read_body(&mut body, PREFIX_BYTES + bytes_max).await.unwrap_or_default();
    let malformed = || {
        let message = "the request cannot be decoded: it is not a message of this rpc";
        Refusal::new(Code::InvalidArgument, "MALFORMED_MESSAGE", message)
    };
    let Some((prefix, mut message)) = bytes.split_at_checked(PREFIX_BYTES) else { return Err(malformed()) };
    let (flags, length) = prefix.split_at(1);
    let length = length.iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
    let compressed = flags != [0] || headers.get(&ENCODING).is_some_and(|encoding| encoding != "identity");
    if compressed {
        let message = "the request is compressed, which is not supported";
        return Err(Refusal::new(Code::Unimplemented, "ENCODING_NOT_SUPPORTED", message));
    }
    if length > bytes_max {
        let message = "the request is larger than this rpc takes";
        return Err(Refusal::new(Code::InvalidArgument, "MESSAGE_TOO_LARGE", message));
    }
    if message.remaining() != length {
        return Err(malformed());
    }
    v1::VerifyKeyRequest::decode(&mut message).map_err(|_| malformed())
}

/// The body, which is nearly always one frame; `None` where it broke off. Of one that is too large no more than `kept_max`
/// bytes and one frame are kept, or a stranger's streams would hold a megabyte each; the rest is read and dropped.
async fn read_body<B>(body: &mut B, kept_max: usize) -> Option<Bytes>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.ok()?.into_data() else { continue };
        read += data.len();
        if first.is_empty() {
            first = data;
        } else if first.len().max(rest.len()) <= kept_max {
            if rest.is_empty() {
                rest.extend_from_slice(&first);
            }
            rest.extend_from_slice(&data);
        }
        if read > READ_BYTES_MAX {
            break;
        }
    }
    Some(if rest.is_empty() { first } else { rest.freeze() })
}

fn encode(answer: Verified) -> Bytes {
    let mut bytes = encode_verified_bytes(answer, PREFIX_BYTES);
    // An answer holds one key's fields, each of which is bounded.
    let length = u32::try_from(bytes.len() - PREFIX_BYTES).unwrap_or(u32::MAX);
    if let Some(prefix) = bytes.get_mut(1..PREFIX_BYTES) {
        prefix.copy_from_slice(&length.to_be_bytes());
    }
    bytes.into()
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut *self {
            Self::Tonic(body) => Pin::new(body).poll_frame(context),
            Self::Message { message, ended } => {
                if let Some(message) = message.take() {
                    return Poll::Ready(Some(Ok(Frame::data(message))));
                }
                if *ended {
                    return Poll::Ready(None);
                }
                *ended = true;
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(STATUS, HeaderValue::from_static("0"));
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Tonic(body) => body.is_end_stream(),
            Self::Message { ended, .. } => *ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Tonic(body) => body.size_hint(),
            // Not exact: an exact one becomes a `content-length`, which gRPC does not send.
            Self::Message { .. } => SizeHint::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::StreamBody;

    use super::*;

    async fn read(frames: Vec<Result<&'static [u8], &'static str>>, kept_max: usize) -> Option<Bytes> {
        let frames = frames.into_iter().map(|frame| frame.map(|bytes| Frame::data(Bytes::from_static(bytes))));
        read_body(&mut StreamBody::new(stream::iter(frames)), kept_max).await
    }

    #[tokio::test]
    async fn a_body_is_read_whole_in_one_frame_or_in_many() {
        assert_eq!(read(vec![Ok(b"abc")], 8).await, Some(Bytes::from_static(b"abc")));
        assert_eq!(read(vec![Ok(b"a"), Ok(b""), Ok(b"bc"), Ok(b"d")], 8).await, Some(Bytes::from_static(b"abcd")));
        assert_eq!(read(vec![], 8).await, Some(Bytes::new()));
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_no_request() {
        assert_eq!(read(vec![Ok(b"abc"), Err("reset")], 8).await, None);
    }

    #[tokio::test]
    async fn of_a_body_that_is_too_large_little_is_kept() {
        let frame: &[u8] = &[7; 1000];
        let kept = read(vec![Ok(frame); 500], 4000).await.unwrap();
        assert!(kept.len() > 4000, "enough is kept to see that it is too large");
        assert!(kept.len() <= 5000, "{} bytes were kept", kept.len());
    }
}
