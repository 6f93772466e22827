"""Post-training quantization: a trained network made quantizable without training it again."""
