"""The code digests in the data keys of earlier checkpoints, so that those can be resumed.

`EncodedData.key` is a hash of the inputs and of the code that reads rows, so it changes with
every edit of a reader. Checkpoints once recorded that key to recognize their data. A new
checkpoint records `EncodedData.fingerprint`, a hash of the examples themselves. To accept the
others too, `EncodedData.earlier_key` is computed as the key was then: from the same inputs, and
from the digests that the code had, which are recorded here.

    earlier key = sha256(json([contents, fingerprint, options, digests]))

This is right as long as today's readers make the same examples of a row as they did; once they
do not, an entry here must go. One exception is accepted: rows with keys that were ignored then and
are read now, such as `system` beside `messages`, continue with what they say.
"""

_CONVERSATION = "1c6a944cd95811eba62615b4c6ed4955991c56b3fbc2581c330f1bac33b9088b"
_ROWS = "63577f40b71d0dbbfa2738583d3e07f103fb099c09694614499ff4ace92039a0"
_FORMATS = "68ddc4ee6c240b33de0e1f0f568dd1be625925b422f49554d02749b0307485d2"
_TEMPLATE = "002ef6884f3c8c213294352f43a6ab7712fe29bf78b07e8a14ca1e3ef0dc6a1f"
_ENCODE = "94de31be05185abd6c036813dd6e1b4430dc4708c5322af086506cc244ea894b"
_PAIRS = "07febb26541b8d1a88fc6ff07b132b1ddac2d326a444a4381d6482cd6e6e6661"

# In the order in which they were hashed.
CONVERSATIONS_CODE = (_CONVERSATION, _ROWS, _FORMATS, _TEMPLATE, _ENCODE)
PAIRS_CODE = (_CONVERSATION, _ROWS, _FORMATS, _TEMPLATE, _PAIRS, _ENCODE)
TEXTS_CODE = (_ROWS, _ENCODE)
