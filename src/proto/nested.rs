//! `RequestOp` and `ResponseOp`, the two messages by which transactions nest, written by hand: prost decodes any message at most 100
//! levels deep, which is 50 transactions, and etcd takes 128 of them.
//!
//! Only a nested transaction begins a new count of prost's levels, and only [`NESTED_MAX`] times within each other, so that no message
//! can overflow the stack: what is deeper is looked at without recursion. Everything else keeps prost's limit.

use std::cell::Cell;

use prost::DecodeError;
use prost::bytes::{Buf, BufMut, Bytes};
use prost::encoding::{DecodeContext, WireType, check_wire_type, decode_key, decode_varint, skip_field};

use super::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};

/// How many transactions may be nested within one. One more is decoded as an empty one, and has to be refused.
pub const NESTED_MAX: u32 = 256;
/// How many levels of messages protobuf for Go decodes (`protowire.DefaultRecursionLimit`).
const LEVELS_MAX: usize = 10_000;
/// How Go's decoder refuses more of them.
pub const TOO_DEEP: &str = "exceeded maximum recursion depth";
/// The number of the field that nests, in both messages.
const TXN: u32 = 4;

/// One operation of a transaction.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestOp {
    /// What is to be done.
    pub request: Option<request_op::Request>,
}

/// The field of [`RequestOp`].
pub mod request_op {
    /// What is to be done.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Request {
        #[prost(message, tag = "1")]
        RequestRange(super::RangeRequest),
        #[prost(message, tag = "2")]
        RequestPut(super::PutRequest),
        #[prost(message, tag = "3")]
        RequestDeleteRange(super::DeleteRangeRequest),
        #[prost(message, tag = "4")]
        RequestTxn(super::TxnRequest),
    }
}

/// The answer to a [`RequestOp`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResponseOp {
    /// What was done.
    pub response: Option<response_op::Response>,
}

/// The field of [`ResponseOp`].
pub mod response_op {
    /// What was done.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Response {
        #[prost(message, tag = "1")]
        ResponseRange(super::RangeResponse),
        #[prost(message, tag = "2")]
        ResponsePut(super::PutResponse),
        #[prost(message, tag = "3")]
        ResponseDeleteRange(super::DeleteRangeResponse),
        #[prost(message, tag = "4")]
        ResponseTxn(super::TxnResponse),
    }
}

impl prost::Message for RequestOp {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if let Some(request) = &self.request {
            request.encode(buf);
        }
    }

    fn merge_field(&mut self, tag: u32, wire_type: WireType, buf: &mut impl Buf, ctx: DecodeContext) -> Result<(), DecodeError> {
        match tag {
            TXN => match Level::enter() {
                Some(level) => {
                    request_op::Request::merge(&mut self.request, tag, wire_type, buf, DecodeContext::default())?;
                    drop(level);
                    Ok(())
                }
                None => {
                    check_wire_type(WireType::LengthDelimited, wire_type)?;
                    check_levels(delimited(buf)?)?;
                    self.request = Some(request_op::Request::RequestTxn(TxnRequest::default()));
                    Ok(())
                }
            },
            1..TXN => request_op::Request::merge(&mut self.request, tag, wire_type, buf, ctx),
            _ => skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        self.request.as_ref().map_or(0, request_op::Request::encoded_len)
    }

    fn clear(&mut self) {
        self.request = None;
    }
}

impl prost::Message for ResponseOp {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if let Some(response) = &self.response {
            response.encode(buf);
        }
    }

    fn merge_field(&mut self, tag: u32, wire_type: WireType, buf: &mut impl Buf, ctx: DecodeContext) -> Result<(), DecodeError> {
        match tag {
            TXN => {
                let level = Level::enter().ok_or_else(too_deep)?;
                response_op::Response::merge(&mut self.response, tag, wire_type, buf, DecodeContext::default())?;
                drop(level);
                Ok(())
            }
            1..TXN => response_op::Response::merge(&mut self.response, tag, wire_type, buf, ctx),
            _ => skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        self.response.as_ref().map_or(0, response_op::Response::encoded_len)
    }

    fn clear(&mut self) {
        self.response = None;
    }
}

/// One transaction within others, while it is decoded: prost hands no depth down that could be asked for.
struct Level;

thread_local! {
    static NESTED: Cell<u32> = const { Cell::new(0) };
}

impl Level {
    fn enter() -> Option<Self> {
        let nested = NESTED.get();
        (nested < NESTED_MAX).then(|| {
            NESTED.set(nested + 1);
            Self
        })
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        NESTED.set(NESTED.get() - 1);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Txn,
    Op,
}

/// Goes through the transaction that would be one nested too deep, without recursion, and refuses it as Go's decoder would: if it is
/// no message, or has too many levels.
fn check_levels(txn: Bytes) -> Result<(), DecodeError> {
    // The transactions that it is nested in, and as many operations that hold them.
    let above = 2 * (NESTED_MAX as usize + 1);
    let mut open = vec![(txn, Kind::Txn)];
    loop {
        let full = above + open.len() >= LEVELS_MAX;
        let Some((message, kind)) = open.last_mut() else { return Ok(()) };
        if !message.has_remaining() {
            open.pop();
            continue;
        }
        let (tag, wire_type) = decode_key(message)?;
        let nested = match (*kind, tag) {
            _ if wire_type != WireType::LengthDelimited => None,
            (Kind::Txn, 2 | 3) => Some(Kind::Op),
            (Kind::Op, TXN) => Some(Kind::Txn),
            // Compares and the other operations are one level, and have none below them.
            (Kind::Txn, 1) | (Kind::Op, 1..TXN) if full => return Err(too_deep()),
            _ => None,
        };
        match nested {
            None => skip_field(wire_type, tag, message, DecodeContext::default())?,
            Some(_) if full => return Err(too_deep()),
            Some(kind) => {
                let nested = delimited(message)?;
                open.push((nested, kind));
            }
        }
    }
}

/// The content of a length-delimited field.
fn delimited(buf: &mut impl Buf) -> Result<Bytes, DecodeError> {
    let len = decode_varint(buf)?;
    match usize::try_from(len) {
        Ok(len) if len <= buf.remaining() => Ok(buf.copy_to_bytes(len)),
        _ => Err(refused("a nested transaction is cut off")),
    }
}

fn too_deep() -> DecodeError {
    refused(TOO_DEEP)
}

#[allow(deprecated)] // prost offers a hand-written Message no other way to refuse anything
fn refused(why: &'static str) -> DecodeError {
    DecodeError::new(why)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// A TxnRequest with `nested` others in it, one in the other, encoded from the inside out.
    fn nest(nested: usize) -> Vec<u8> {
        let mut backwards = Vec::new();
        for tag in [TXN, 2].repeat(nested) {
            let mut head = Vec::new();
            prost::encoding::encode_key(tag, WireType::LengthDelimited, &mut head);
            prost::encoding::encode_varint(backwards.len() as u64, &mut head);
            backwards.extend(head.iter().rev());
        }
        backwards.reverse();
        backwards
    }

    fn depth(request: &TxnRequest) -> usize {
        let mut depth = 0;
        let mut request = request;
        while let Some(request_op::Request::RequestTxn(nested)) = request.success.first().and_then(|op| op.request.as_ref()) {
            depth += 1;
            request = nested;
        }
        depth
    }

    #[test]
    fn transactions_are_decoded_and_encoded_as_deep_as_they_may_nest() {
        for nested in [0, 1, 49, 50, 128, NESTED_MAX as usize] {
            let encoded = nest(nested);
            let decoded = TxnRequest::decode(encoded.as_slice()).expect("a nest within the limit");
            assert_eq!(depth(&decoded), nested);
            assert_eq!(decoded.encode_to_vec(), encoded);
        }
    }

    #[test]
    fn a_nest_below_the_limit_is_cut_off_up_to_what_go_decodes_and_refused_beyond() {
        let decode = |nested| TxnRequest::decode(nest(nested).as_slice());
        assert_eq!(depth(&decode(NESTED_MAX as usize + 7).expect("Go decodes it")), NESTED_MAX as usize + 1);
        assert!(decode(4_999).is_ok(), "the innermost message is on level 9,999");
        assert!(decode(5_000).expect_err("level 10,001").to_string().ends_with(TOO_DEEP));
        assert_eq!(NESTED.get(), 0, "a refusal leaves no count behind");
        assert_eq!(depth(&decode(3).expect("an innocent one")), 3);
    }

    #[test]
    fn a_mebibyte_of_nesting_of_any_kind_is_refused_and_not_followed() {
        let nested = nest(140_000);
        assert!(nested.len() > 1 << 20, "{}", nested.len());
        assert!(TxnRequest::decode(nested.as_slice()).expect_err("far too deep").to_string().ends_with(TOO_DEEP));
        let groups = vec![0x0b_u8; 1 << 20];
        assert!(TxnRequest::decode(groups.as_slice()).is_err());
        assert!(RequestOp::decode(groups.as_slice()).is_err());
        let innermost = nest(NESTED_MAX as usize);
        assert!(TxnRequest::decode([innermost.as_slice(), &groups].concat().as_slice()).is_err());
        let responses = vec![0x1b_u8; 1 << 20];
        assert!(TxnResponse::decode(responses.as_slice()).is_err());
    }
}
