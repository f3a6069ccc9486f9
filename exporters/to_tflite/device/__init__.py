"""The generated C++ on the real thing: linked with a library of tflite-micro, run here or on an emulated Cortex-M."""
