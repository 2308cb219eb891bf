"""Files from elsewhere, read so that whatever is in them is either understood or refused by one `MxqError`.

No library sees bytes whose claims were not first checked against the size of the file: what a header says of counts,
lengths and shapes costs nothing to write and gigabytes to believe. Only regular files are opened, so that a pipe
cannot make a command wait, nor a device feed it for ever.

* `mxq.formats.reading`: opening, text, and what a library raises about damaged bytes as one error.
* `mxq.formats.documents`: JSON, and dataclasses from it with every field's type checked.
* `mxq.formats.arrays`: ``.npy`` and ``.npz``.
* `mxq.formats.params`: MXNet's ``.params``.
* `mxq.formats.records`: RecordIO.
"""
