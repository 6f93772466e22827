"""Networks and data that the book runs on.

The names below load on first use; torch is needed for most of them, other packages where an error
says so.
"""

from minq._lazy import lazily

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "small": (
            "NAMES METRICS TrainingBatches calibration_set evaluate info load test_set "
            "validation_set"
        ),
        "pretrained": (
            "STRIDE_2 efficientnet_lite0 efficientnet_lite0_model efficientnet_lite0_weights "
            "imagenet_samples photo_crops same_convolution"
        ),
        "sentence_encoder": "MiniLM minilm minilm_tokenizer tokenize windows",
        "paraphrases": "sentence_pairs sentences",
        "smollm": (
            "chat generate has_smollm2 smollm2 smollm2_file smollm2_gguf smollm2_tokenizer"
        ),
        "decoder": "Decoder rebuilt",
        "bytes_decoder": "Bytes small_decoder",
        "chain": "digit_chain",
        "gguf": "GGUF",
        "speeches": "prose token_rows",
        "data": "scenes",
        "text": "reviews spell",
        "models": "EfficientNetLite",
        "metrics": "",
        "photos": "",
        "train": "loss_of",
    },
)
