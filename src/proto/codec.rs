//! The codec of all services: prost's, except that a message's buffer is made in its full size at once.
//!
//! tonic starts with 8 KiB and doubles as the message grows. For a list of 20 MB that is eleven copies and more than 40 MB of fresh
//! pages that the kernel has to zero: more work than encoding the list. docs/performance.md has the figures.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::{ProstCodec, ProstDecoder};

/// What a request's buffer is made with; it grows to the message's announced length. tonic's 8 KiB cost a cache line for every 64 bytes.
const DECODE_BUFFER_BYTES: usize = 2048;
/// What a response's buffer is made with, for the frame's header; the encoder makes room for the message.
const ENCODE_BUFFER_BYTES: usize = 128;
/// As tonic: how much of a stream is gathered before it is sent.
const YIELD_THRESHOLD_BYTES: usize = 32 << 10;

/// Encodes `T`, decodes `U`.
#[derive(Clone, Debug)]
pub struct SizedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SizedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SizedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = SizedEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        SizedEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(DECODE_BUFFER_BYTES, YIELD_THRESHOLD_BYTES))
    }
}

/// The encoding half of [`SizedCodec`].
#[derive(Clone, Debug)]
pub struct SizedEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for SizedEncoder<T> {
    type Item = T;
    type Error = Status;

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(ENCODE_BUFFER_BYTES, YIELD_THRESHOLD_BYTES)
    }

    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.encoded_len());
        item.encode(buffer).map_err(|error| Status::internal(format!("a response could not be encoded: {error}")))
    }
}
