// The service's OpenAPI description in Swagger UI. No validator elsewhere is asked.

window.SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null });
