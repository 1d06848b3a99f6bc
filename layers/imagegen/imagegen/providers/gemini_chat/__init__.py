"""Gemini's image models over OpenAI's chat completions, as resellers and Google itself serve them."""
