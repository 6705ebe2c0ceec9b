//! Statement parameters that are encoded from the batch itself, without a copy in between, and that never show a value in a
//! debug log (tokio-postgres prints parameters there).

use std::error::Error;
use std::fmt;

use bytes::{BufMut, BytesMut};
use postgres_types::{IsNull, ToSql, Type, to_sql_checked};

/// A one-dimensional array whose elements `put` takes out of `items`: it appends the element's binary form and answers whether
/// the element is not NULL.
pub struct Array<'a, T> {
    /// What the elements are taken from.
    pub items: &'a [T],
    /// Appends one element.
    pub put: fn(&T, &mut BytesMut) -> bool,
}

impl<T> fmt::Debug for Array<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} elements]", self.items.len())
    }
}

impl<T: Sync> ToSql for Array<'_, T> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let element = match *ty {
            Type::INT8_ARRAY => Type::INT8,
            Type::INT4_ARRAY => Type::INT4,
            Type::BYTEA_ARRAY => Type::BYTEA,
            _ => return Err(format!("no array of {ty}").into()),
        };
        // array_recv's format: dimensions, has-nulls flag, element type, then length and lower bound of the one dimension.
        out.put_i32(i32::from(!self.items.is_empty()));
        out.put_i32(1);
        out.put_u32(element.oid());
        if self.items.is_empty() {
            return Ok(IsNull::No);
        }
        out.put_i32(i32::try_from(self.items.len())?);
        out.put_i32(1);
        for item in self.items {
            let length_at = out.len();
            out.put_i32(-1);
            if (self.put)(item, out) {
                let length = i32::try_from(out.len() - length_at - 4)?;
                out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
            }
        }
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::INT8_ARRAY | Type::INT4_ARRAY | Type::BYTEA_ARRAY)
    }

    to_sql_checked!();
}
