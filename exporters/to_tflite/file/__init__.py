"""What a .tflite file is: its bytes, its operators, and TensorFlow, which writes them."""
