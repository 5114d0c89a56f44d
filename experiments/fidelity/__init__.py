"""The same function as the published models': measured against `transformers`, in float32."""
