//! The file of weights: safetensors, 32-bit floats.

use std::collections::BTreeMap;

use crate::Error;
use crate::json::Json;

/// A file of weights is about 1.4 MB; what is much longer is another file.
pub(crate) const LARGEST_FILE: usize = 64 << 20;

/// One array: its shape, and its values in rows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// Arrays by their names.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// Reads a safetensors file: 8 bytes with the length of a header, the header in JSON, then the values.
///
/// Refused are arrays that are not 32-bit floats, overlap, leave bytes between them or hold what is not a number.
pub(crate) fn read(file: &[u8]) -> Result<Tensors, Error> {
    if file.len() > LARGEST_FILE {
        return Err(Error::new("too long for a file of weights"));
    }
    let (length, rest) =
        file.split_first_chunk::<8>().ok_or_else(|| Error::new("too short for a safetensors file"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (header, data) = rest
        .split_at_checked(length)
        .ok_or_else(|| Error::new("not a safetensors file, or cut off: its header is longer than it is"))?;
    let header = str::from_utf8(header).map_err(|_| Error::new("the header is not UTF-8"))?;
    let Json::Object(entries) = Json::parse(header)? else {
        return Err(Error::new("the header is not an object"));
    };

    let mut tensors = Tensors::new();
    let mut ranges = Vec::new();
    for (name, entry) in entries {
        if name == "__metadata__" {
            continue;
        }
        let about = |error: Error| error.about(format!("tensor {name:?}"));
        let (shape, start, end) = place(&entry, data.len()).map_err(about)?;
        let values = floats(&data[start..end]).map_err(about)?;
        ranges.push((start, end));
        tensors.insert(name, Tensor { shape, values });
    }
    ranges.sort_unstable();
    let mut at = 0;
    for (start, end) in ranges {
        if start != at {
            return Err(Error::new(format!("arrays overlap or leave bytes out at byte {at} of the values")));
        }
        at = end;
    }
    if at != data.len() {
        return Err(Error::new(format!("{} bytes belong to no array", data.len() - at)));
    }
    Ok(tensors)
}

/// Returns the shape of an array, and where its bytes begin and end.
fn place(entry: &Json, available: usize) -> Result<(Vec<usize>, usize, usize), Error> {
    match entry.get("dtype") {
        Some(Json::Text(kind)) if kind == "F32" => {}
        Some(Json::Text(kind)) => return Err(Error::new(format!("{kind} where F32 is needed"))),
        _ => return Err(Error::new("no dtype")),
    }
    let shape = entry.get("shape").and_then(Json::as_sizes).ok_or_else(|| Error::new("no shape"))?;
    let offsets = entry.get("data_offsets").and_then(Json::as_sizes);
    let Some(&[start, end]) = offsets.as_deref() else {
        return Err(Error::new("no data_offsets"));
    };
    if start > end || end > available {
        return Err(Error::new("its bytes lie outside the file"));
    }
    let size = shape.iter().try_fold(4_usize, |size, &n| size.checked_mul(n));
    if size != Some(end - start) {
        return Err(Error::new(format!("{} bytes do not make the shape {shape:?}", end - start)));
    }
    Ok((shape, start, end))
}

fn floats(bytes: &[u8]) -> Result<Vec<f32>, Error> {
    let (words, _) = bytes.as_chunks::<4>();
    let values: Vec<f32> = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
    // what is larger than this makes sums that are not finite
    if values.iter().all(|v| v.abs() < 1e6) {
        return Ok(values);
    }
    Err(Error::new("a value that is not a number, or far too large"))
}
